"""`timm_sk.export`: a model as ONNX, OpenVINO IR or a program of torch, checked before the file appears."""

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm.models
import torch
from torch import Tensor, nn

from ..data.shapes import draw
from ..models.inputs import image_shape, preprocessing
from ..optional_packages import require_package
from .deployment import Deployed
from .engines import EngineModel, FrozenModel, default_engine, require_engine
from .graph_form import graph_form
from .prediction import class_names
from .saved_program import load_program, save_program

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch': '.pt2', 'aoti': '.pt2'}
OPSET = 20
TOLERANCE = 1e-4  # of the largest output: rounding differs between engines
HALF_TOLERANCE = 1e-2  # with weights in float16
MAX_PROTOBUF = 2**31 - 2**20  # bytes; larger ONNX models keep their weights in a second file
CHECK_IMAGES = 3  # not the batch of the example input


class WithPreprocessing(nn.Module):
    """A classifier of uint8 images: [B, H, W, C] with values 0 to 255 -> probabilities [B, num_classes].

    The images have the model's size; resizing and cropping are left to the caller.

    Args:
        model: Takes normalized images [B, C, H, W], returns logits.
        mean: [C], of values from 0 to 1.
        std: [C], likewise.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer('scale', 1 / (255 * torch.tensor(std))[:, None, None])
        self.register_buffer('shift', -(torch.tensor(mean) / torch.tensor(std))[:, None, None])
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return self.model(x).softmax(dim=1)


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    input_size: Sequence[int] | None = None,
    dynamic_size: bool = False,
    embed_preprocessing: bool = False,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Export a model for an inference engine, and check it on images before the file appears.

    Args:
        model: A model in eval mode, plain, folded or deployed; or a quantized one of `timm_sk.quantize`.
        path: The file to write. The weights of an ONNX model above 2 GB are in a second file, PATH.data. A program of
            torch gets a second file, PATH.json, which says where it may be loaded.
        format: 'onnx', 'openvino' (IR: `.xml`, and `.bin` beside it), 'torch' (`torch.export`, `.pt2`) or 'aoti' (an
            AOTInductor package, `.pt2`, compiled for this processor); None for the first that has the path's ending.
        input_size: Channels, height and width; None for those of the model's checkpoint.
        dynamic_size: Accept other heights and widths too. The batch size is always dynamic.
        embed_preprocessing: Take uint8 images [B, H, W, C] of this size, and return probabilities.
        half: Store the weights of an IR as float16, in half the space; OpenVINO computes in the precision that suits
            the processor.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        ValueError: If the format is unknown or contradicts the path's ending, the file exists, a package is missing,
            the model is in train mode, an operation cannot be exported, or the outputs differ by more than 1e-4 (with
            `half` 1e-2) of the largest.
    """
    path = Path(path)
    format = _resolve_format(path, format)
    _require_writable(path, overwrite)
    if model.training:
        raise ValueError('A model is exported in eval mode, got train mode: call eval().')
    if format in ('onnx', 'openvino'):
        require_engine('openvino' if format == 'openvino' else 'onnxruntime')
    if half and (format != 'openvino' or isinstance(model, FrozenModel)):
        raise ValueError('half is for models in float32 in format openvino: omit it.')
    if isinstance(model, FrozenModel):
        with _written(path) as target:
            _write_again(model, target, format)
        return path
    model = model.model if isinstance(model, Deployed) else model
    shape = image_shape(model, 2, input_size)
    metadata = describe(model, shape)
    graph = graph_form(model)
    images = check_images(shape, metadata)
    if embed_preprocessing:
        model, graph, images = _embed_preprocessing(model, graph, shape, metadata)
    with _written(path) as target:
        options: dict[str, Any] = dict(dynamic_size=dynamic_size, metadata=metadata)
        exported: FrozenModel
        if format in ('torch', 'aoti'):
            save_program(graph, images[:2], target, aoti=format == 'aoti', **options)
            exported = load_program(target, trusted=True)
        else:
            onnx_path = write_onnx(graph, images[:2], target.with_suffix('.onnx'), **options)
            if format == 'openvino':
                exported = EngineModel(_write_openvino(onnx_path, target, half=half), 'openvino')
                onnx_path.unlink()
            else:
                exported = EngineModel(onnx_path, 'onnxruntime')
        compare(exported, copy.deepcopy(model).cpu().float(), images, HALF_TOLERANCE if half else TOLERANCE)
    return path


def load_deployed(path: str | Path, *, engine: str | None = None, trusted: bool = False) -> FrozenModel:
    """Load a model that `timm_sk.export` wrote; nothing is compiled again but by the engine.

    Args:
        path: An ONNX model, the `.xml` of an IR, or a program of torch (`.pt2`).
        engine: 'onnxruntime' or 'openvino' for an ONNX model; None for the latter if it is installed.
        trusted: Confirm that a `.pt2` file comes from a source that you trust: loading runs code that it holds.

    Raises:
        ValueError: If the file is missing or damaged, was made for another processor or version of torch, or is a
            program that is not trusted.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path}: no such file.')
    if _resolve_format(path, None) == 'torch':
        return load_program(path, trusted)
    return EngineModel(path, engine or default_engine(path))


def describe(model: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """Metadata of an exported model: architecture, input size, preprocessing, label names and licence.

    Args:
        model: The model.
        shape: B, C, H and W of its input.
    """
    cfg = dict(getattr(model, 'pretrained_cfg', None) or {})
    found: dict[str, Any] = {'input_size': list(shape[1:])}
    found |= {key: cfg[key] for key in ('architecture', 'tag', 'license') if cfg.get(key) is not None}
    if cfg:
        config = preprocessing(model, any_channels=True)
        found['preprocessing'] = {key: config[key] for key in ('mean', 'std', 'interpolation', 'crop_pct')}
    if isinstance(model, timm.models.FeatureListNet):
        found['features_only'] = True
    elif hasattr(model, 'num_classes'):
        found['num_classes'] = model.num_classes
        found |= {'label_names': class_names(model)} if cfg and model.num_classes else {}
    return found


def check_images(shape: Sequence[int], metadata: dict[str, Any]) -> Tensor:
    """Images to compare an exported model on: drawn shapes, normalized, [CHECK_IMAGES, C, H, W]."""
    channels, height, width = shape[1:]
    drawn, _ = draw(CHECK_IMAGES, seed=0, size=max(height, width))
    images = torch.from_numpy(drawn).permute(0, 3, 1, 2)[:, :, :height, :width].float() / 255
    images = images[:, torch.arange(channels) % 3]
    config = metadata.get('preprocessing')
    if config is None:
        return images * 2 - 1
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    return (images - mean) / std


def write_onnx(
    graph: nn.Module, x: Tensor, path: Path, *, dynamic_size: bool = False, metadata: dict[str, Any] | None = None
) -> Path:
    """Write a model as ONNX with a dynamic batch.

    Args:
        graph: A model in its graph form.
        x: An example input of at least two images.
        path: The file to write; above 2 GB the weights are in a second file, whose name ends in `.data`.
        dynamic_size: Make height and width dynamic too.
        metadata: Written into the model as JSON.

    Returns:
        The path.

    Raises:
        ValueError: If an operation cannot be exported, or onnxscript is not installed.
    """
    require_package('onnxscript', 'onnx')
    channels_last = x.dtype == torch.uint8
    sizes = {1: 'height', 2: 'width'} if channels_last else {2: 'height', 3: 'width'}
    dims = {0: 'batch', **(sizes if dynamic_size else {})}
    try:
        program = torch.onnx.export(
            graph,
            (x,),
            dynamo=True,
            dynamic_shapes=({axis: torch.export.Dim(name, min=1) for axis, name in dims.items()},),
            opset_version=OPSET,
            input_names=['images'],
            verbose=False,
        )
    except Exception as error:  # the exporter raises classes of many packages
        reason = ' '.join(str(error).split())
        raise ValueError(f'The model cannot be exported to ONNX: {reason[:300]}') from error
    assert program is not None
    program.model.metadata_props['timm_sk'] = json.dumps(metadata or {}, sort_keys=True)
    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    program.save(path, external_data=weights > MAX_PROTOBUF)
    return path


def _write_openvino(onnx_path: Path, path: Path, *, half: bool = False) -> Path:
    """Convert an ONNX model to OpenVINO's IR."""
    import openvino

    from .engines import read_metadata

    core = openvino.Core()
    model = core.read_model(onnx_path)
    model.set_rt_info(json.dumps(read_metadata(onnx_path), sort_keys=True), ['timm_sk'])
    openvino.save_model(model, path, compress_to_fp16=half)
    return path


def _resolve_format(path: Path, format: str | None) -> str:
    if format is None:
        format = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), None)
        if format is None:
            raise ValueError(f'{path.name} has no known ending: expected {", ".join(sorted(set(SUFFIXES.values())))}.')
    if format not in SUFFIXES:
        raise ValueError(f'Unknown format "{format}": expected {", ".join(SUFFIXES)}.')
    if path.suffix != SUFFIXES[format]:
        raise ValueError(f'A file in format {format} ends in {SUFFIXES[format]}, got {path.name}.')
    return format


def _require_writable(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ValueError(f'{path} exists already: choose another path, or overwrite it.')
    if not path.parent.is_dir():
        raise ValueError(f'{path.parent} is not a folder: create it first.')


def _embed_preprocessing(
    model: nn.Module, graph: nn.Module, shape: Sequence[int], metadata: dict[str, Any]
) -> tuple[nn.Module, nn.Module, Tensor]:
    """Model, graph and images with uint8 input; notes it in the metadata."""
    config = metadata.get('preprocessing')
    if config is None or not metadata.get('num_classes'):
        raise ValueError('Preprocessing is embedded into classifiers with a pretrained_cfg: export without it.')
    metadata['uint8_input'] = True
    drawn, _ = draw(CHECK_IMAGES, seed=0, size=max(shape[2:]))
    images = torch.from_numpy(drawn)[:, : shape[2], : shape[3], : shape[1]].contiguous()
    mean, std = config['mean'], config['std']
    return WithPreprocessing(model, mean, std), WithPreprocessing(graph, mean, std), images


def compare(exported: FrozenModel, model: nn.Module, images: Tensor, tolerance: float = TOLERANCE) -> None:
    """Compare the outputs of an exported model with those of the original.

    Args:
        exported: The exported model.
        model: The original, in float32 on the CPU.
        images: Input of both, of another batch size than the example input.
        tolerance: Largest difference, as a share of the largest output.

    Raises:
        ValueError: If they differ by more, or in the likeliest classes.
    """
    with torch.no_grad():
        expected = model(images)
    found = exported(images)
    pairs = list(zip(found, expected, strict=True)) if isinstance(found, list) else [(found, expected)]
    difference = max(
        ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item() for ours, theirs in pairs
    )
    if not difference <= tolerance:
        raise ValueError(f'The exported model differs from the original by {difference:.1e} of the largest output.')
    if exported.num_classes and not torch.equal(found.argmax(1), expected.argmax(1)):
        raise ValueError('The exported model predicts other classes than the original.')


def _write_again(model: FrozenModel, path: Path, format: str) -> None:
    """Write a model that is exported already, such as a quantized one, as ONNX or IR."""
    if not isinstance(model, EngineModel) or not isinstance(model.graph, bytes) or format not in ('onnx', 'openvino'):
        raise ValueError(f'A model in {model.engine} cannot be exported as {format}: export the original model.')
    onnx_path = path.with_suffix('.onnx')
    onnx_path.write_bytes(model.graph)
    if format == 'openvino':
        _write_openvino(onnx_path, path)
        onnx_path.unlink()


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Yields a path in an empty folder, whose files are moved beside `path` in the end, the named one last."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder:
        yield Path(folder, path.name)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            with file.open('rb+') as opened:
                os.fsync(opened.fileno())
            file.replace(path.with_name(file.name))
