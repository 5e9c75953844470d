"""`timm-sk export`: models for inference engines, in float32 or int8."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import one_line_errors


def export_model(
    model_name: Annotated[
        str, typer.Argument(metavar='MODEL', help='Model: architecture, arch.tag or local-dir:FOLDER.')
    ],
    path: Annotated[Path, typer.Argument(metavar='OUT', help='File to write: .onnx, .xml (OpenVINO) or .pt2 (torch).')],
    format: Annotated[
        str | None, typer.Option(help='onnx, openvino, torch, aoti; by the ending of OUT if not given.')
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width; the checkpoint's if not given.")] = None,
    dynamic_size: Annotated[bool, typer.Option('--dynamic-size', help='Accept other heights and widths too.')] = False,
    embed_preprocessing: Annotated[
        bool, typer.Option('--embed-preprocessing', help='Take uint8 images, return probabilities.')
    ] = False,
    features_only: Annotated[
        bool, typer.Option('--features-only', help='Return the feature maps of all stages.')
    ] = False,
    embeddings: Annotated[bool, typer.Option('--embeddings', help='Return pooled features instead of logits.')] = False,
    half: Annotated[bool, typer.Option('--half', help='Store the weights of an IR (.xml) as float16.')] = False,
    int8: Annotated[bool, typer.Option('--int8', help='Quantize to int8; needs --calibrate.')] = False,
    calibrate: Annotated[
        Path | None, typer.Option(metavar='FOLDER', help='Calibration images; at most 256 are used.')
    ] = None,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Replace an existing file.')] = False,
) -> None:
    """Export a model to ONNX, OpenVINO or a torch program. It is checked before the file appears."""
    from ..data.images import find_images
    from ..factory import ready_model
    from ..inference.graph_export import export, require_writable
    from ..inference.int8 import load_calibration, quantize

    with one_line_errors():
        if int8 != (calibrate is not None):
            raise ValueError('--int8 and --calibrate FOLDER go together.')
        if features_only and embeddings:
            raise ValueError('--features-only and --embeddings exclude each other.')
        if int8 and (embed_preprocessing or half):
            raise ValueError(
                '--int8 takes normalized images and stores int8 weights: omit --embed-preprocessing and --half.'
            )
        if calibrate is not None and not calibrate.exists():
            raise ValueError(f'{calibrate}: no such folder.')
        if require_writable(path, format, overwrite) in ('torch', 'aoti') and int8:
            raise ValueError('--int8 is for .onnx and .xml files.')
        kind = dict(features_only=True) if features_only else dict(num_classes=0) if embeddings else {}
        model = ready_model(model_name, device='cpu', **kind)
        channels = getattr(model, 'in_chans', 3)
        input_size = None if size is None else (channels, size, size)
        note, options = '', dict[str, Any]()
        if calibrate is not None:
            images = load_calibration(model, find_images([str(calibrate)]), input_size)
            model = quantize(model, [images], input_size=input_size)
            found = model.metadata['int8']
            note = f', int8: outputs differ by {found["difference"]:.1%} of the largest'
            if 'agreement' in found:
                note += f', {found["agreement"]:.1%} of {found["images"]} calibration images keep their top-1'
        else:
            options = dict(input_size=input_size, dynamic_size=dynamic_size, embed_preprocessing=embed_preprocessing)
        export(model, path, format=format, half=half, overwrite=overwrite, **options)
    files = [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]
    print(f'{path}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB{note}')
