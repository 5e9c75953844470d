"""`timm_sk.export`: a model as ONNX, OpenVINO IR or a program of torch, checked before the file appears."""

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import normalizer
from ..data.shapes import draw
from ..models.inputs import image_shape, preprocessing
from ..optional_packages import require_package
from .deployment import inner_model, require_deployable
from .engines import EngineModel, FrozenModel, default_engine, read_metadata, require_engine, root_reason
from .graph_form import graph_form
from .prediction import class_names
from .saved_program import dynamic_dims, load_program, save_program

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch': '.pt2', 'aoti': '.pt2'}
OPSET = 20
TOLERANCE = 1e-4  # of the largest output: rounding differs between engines
HALF_TOLERANCE = 1e-2  # with weights in float16
OWN_ROUNDING = 16  # times the difference between the model's float32 and float64 outputs is accepted
MAX_PROTOBUF = 2**31 - 2**20  # bytes; larger ONNX models keep their weights in a second file
CHECK_IMAGES = 3  # not the batch of the example input


class WithPreprocessing(nn.Module):
    """A classifier of uint8 images: [B, H, W, C] with values 0 to 255 -> probabilities [B, num_classes].

    The images have the model's size; resizing and cropping are left to the caller. Mean and standard deviation [C] are
    of values from 0 to 1.
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
        dynamic_size: Accept other heights and widths too; those of a program of torch must leave more than one pixel of
            the last feature map. The batch size is always dynamic.
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
    format = require_writable(path, format, overwrite)
    if format in ('onnx', 'openvino'):
        require_engine('openvino' if format == 'openvino' else 'onnxruntime')
    if half and (format != 'openvino' or isinstance(model, FrozenModel)):
        raise ValueError('half is for models in float32 in format openvino: omit it.')
    if isinstance(model, FrozenModel):
        if input_size is not None or dynamic_size or embed_preprocessing:
            raise ValueError(f'Input size and preprocessing of a model in {model.engine} are fixed: omit the options.')
        with _written(path) as target:
            _write_again(model, target, format)
        return path
    model = inner_model(model)
    require_deployable(model)
    shape = image_shape(model, 2, input_size)
    metadata = describe(model, shape)
    graph, reference = graph_form(model), copy.deepcopy(model).cpu().float()
    if embed_preprocessing:
        graph, reference = _embed_preprocessing(graph, metadata), _embed_preprocessing(reference, metadata)
        metadata['uint8_input'] = True
    checked = [check_images(shape[1:], metadata)]
    if dynamic_size:  # the example too is larger: a last feature map of one pixel would fix the size
        checked.insert(0, check_images([shape[1], shape[2] + 17, shape[3] + 1], metadata))
    x = checked[0][:2]
    with _written(path) as target:
        options: dict[str, Any] = dict(dynamic_size=dynamic_size, metadata=metadata)
        exported: FrozenModel
        if format in ('torch', 'aoti'):
            save_program(graph, x, target, aoti=format == 'aoti', **options)
            exported = load_program(target, trusted=True)
        else:
            exported = _convert(write_onnx(graph, x, target.with_suffix('.onnx'), **options), target, half=half)
        for images in checked:
            compare(exported, reference, images, HALF_TOLERANCE if half else TOLERANCE)
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
    format = _resolve_format(path, None)
    if engine is not None and (format == 'torch' or (format == 'openvino' and engine == 'onnxruntime')):
        raise ValueError(f'{path.name} is for {format} only: omit engine.')
    if format == 'torch':
        return load_program(path, trusted)
    return EngineModel(path, engine or default_engine(path))


def describe(model: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """Metadata of an exported model with inputs B, C, H, W: architecture, preprocessing, label names and licence."""
    cfg = dict(getattr(model, 'pretrained_cfg', None) or {})
    found: dict[str, Any] = {'input_size': list(shape[1:])}
    found |= {key: cfg[key] for key in ('architecture', 'tag', 'license') if cfg.get(key) is not None}
    if cfg:
        config = preprocessing(model, any_channels=True)
        found['preprocessing'] = {key: config[key] for key in ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')}
    if hasattr(model, 'feature_info') and not hasattr(model, 'forward_head'):  # timm's nets of feature maps
        found['features_only'] = True
    elif hasattr(model, 'num_classes'):
        found['num_classes'] = model.num_classes
        found |= {'label_names': class_names(model)} if cfg and model.num_classes else {}
    return found


def check_images(size: Sequence[int], metadata: dict[str, Any]) -> Tensor:
    """Images of a size C, H, W to compare an exported model on, as it takes them: CHECK_IMAGES drawn shapes."""
    channels, height, width = size
    drawn, _ = draw(CHECK_IMAGES, seed=0, size=max(height, width))
    pixels = torch.from_numpy(drawn)[:, :height, :width, torch.arange(channels) % 3].contiguous()
    if metadata.get('uint8_input'):
        return pixels
    config = metadata.get('preprocessing', dict(mean=[0.5] * channels, std=[0.5] * channels))
    return normalizer(config['mean'], config['std'], torch.device('cpu'))(pixels.permute(0, 3, 1, 2))


def write_onnx(graph: nn.Module, x: Tensor, path: Path, *, dynamic_size: bool, metadata: dict[str, Any]) -> Path:
    """Write a model in its graph form as ONNX with a dynamic batch, and the metadata in it as JSON.

    The example input has at least two images. Above 2 GB the weights are in a second file, whose name ends in `.data`.

    Raises:
        ValueError: If an operation cannot be exported, or onnxscript is not installed.
    """
    require_package('onnxscript', 'onnx')
    try:
        program = torch.onnx.export(
            graph,
            (x,),
            dynamo=True,
            dynamic_shapes=(dynamic_dims(x, dynamic_size),),
            opset_version=OPSET,
            input_names=['images'],
            verbose=False,
        )
    except Exception as error:  # the exporter raises classes of many packages
        raise ValueError(f'The model cannot be exported to ONNX: {root_reason(error)}') from error
    assert program is not None
    program.model.metadata_props['timm_sk'] = json.dumps(metadata, sort_keys=True)
    weights = sum(tensor.nbytes for tensor in graph.state_dict().values())
    program.save(path, external_data=weights > MAX_PROTOBUF)
    return path


def write_onnx_of_any_size(model: nn.Module, x: Tensor, path: Path, metadata: dict[str, Any]) -> Path:
    """Write the graph form of a model as `write_onnx`, with dynamic height and width unless an operation forbids it."""
    graph = graph_form(model)
    try:
        return write_onnx(graph, x, path, dynamic_size=True, metadata=metadata)
    except ValueError:
        return write_onnx(graph, x, path, dynamic_size=False, metadata=metadata)


def _convert(onnx_path: Path, path: Path, *, half: bool = False) -> EngineModel:
    """Load an ONNX file; if the path is another one, convert it to OpenVINO's IR there before, and remove it."""
    if path == onnx_path:
        return EngineModel(path, 'onnxruntime')
    import openvino

    model = openvino.Core().read_model(onnx_path)
    model.set_rt_info(json.dumps(read_metadata(onnx_path), sort_keys=True), ['timm_sk'])
    openvino.save_model(model, path, compress_to_fp16=half)
    onnx_path.unlink()
    return EngineModel(path, 'openvino')


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


def require_writable(path: Path, format: str | None, overwrite: bool) -> str:
    """Check the path of an export, and return the format.

    Raises:
        ValueError: As `export`.
    """
    format = _resolve_format(path, format)
    second = {'.onnx': f'{path.name}.data', '.xml': f'{path.stem}.bin', '.pt2': f'{path.name}.json'}[path.suffix]
    for file in (path, path.with_name(second)):
        if file.exists() and not overwrite:
            raise ValueError(f'{file} exists already: choose another path, or pass overwrite (--overwrite).')
    if not path.parent.is_dir():
        raise ValueError(f'{path.parent} is not a folder: create it first.')
    return format


def _embed_preprocessing(model: nn.Module, metadata: dict[str, Any]) -> nn.Module:
    config = metadata.get('preprocessing')
    if config is None or not metadata.get('num_classes') or metadata['input_size'][0] not in (1, 3):
        raise ValueError('Preprocessing is for classifiers of grey or RGB images with a pretrained_cfg: omit it.')
    return WithPreprocessing(model, config['mean'], config['std'])


def compare(exported: FrozenModel, model: nn.Module, images: Tensor, tolerance: float = TOLERANCE) -> None:
    """Compare the outputs of an exported model with those of the original, in float32 on the CPU.

    The images are a batch of another size than the example input's. The tolerance is a share of the largest output; it
    is larger if the model itself rounds more.

    Raises:
        ValueError: If they differ by more, or in the likeliest classes.
    """
    with torch.no_grad():
        expected = model(images)
    found = exported(images)
    difference = _difference(found, expected)
    if not difference <= tolerance and not isinstance(model, FrozenModel):
        with torch.no_grad():  # a net whose activations grow on these images rounds more itself
            exact = images.double() if images.is_floating_point() else images
            rounding = _difference(expected, copy.deepcopy(model).double()(exact))
        tolerance = max(tolerance, OWN_ROUNDING * rounding)
    if not difference <= tolerance:
        raise ValueError(f'The exported model differs from the original by {difference:.1e} of the largest output.')
    if exported.num_classes and not torch.equal(found.argmax(1), expected.argmax(1)):
        raise ValueError('The exported model predicts other classes than the original.')


def _difference(found: Any, expected: Any) -> float:
    """The largest difference of two outputs, as a share of the largest value."""
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    return max(((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item() for ours, theirs in pairs)


def _write_again(model: FrozenModel, path: Path, format: str) -> None:
    """Write a model that is exported already, such as a quantized one, as ONNX or IR, and check it."""
    graph = model.graph if isinstance(model, EngineModel) else None
    if isinstance(graph, Path):
        graph = graph.read_bytes() if graph.suffix == '.onnx' else None
    if graph is None or 'input_size' not in model.metadata or format not in ('onnx', 'openvino'):
        raise ValueError(f'A model in {model.engine} cannot be exported as {format}: export the original model.')
    onnx_path = path.with_suffix('.onnx')
    onnx_path.write_bytes(graph)
    exported = _convert(onnx_path, path)
    compare(exported, EngineModel(graph, exported.engine), check_images(model.metadata['input_size'], model.metadata))


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Yields a path in an empty folder, whose files are moved beside `path` in the end, the named one last."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder:
        yield Path(folder, path.name)
        files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        if len(files) > 1:
            path.unlink(missing_ok=True)  # an old one must never lie beside a new second file
        for file in files:
            with file.open('rb+') as opened:
                os.fsync(opened.fileno())
            file.replace(path.with_name(file.name))
