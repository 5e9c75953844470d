"""`timm_sk.quantize`: post-training static quantization to int8, calibrated on images.

ONNX Runtime's quantizer writes QDQ nodes: weights are int8 with a scale per output channel, activations uint8 with a
scale per tensor, from their ranges on the calibration images. OpenVINO and ONNX Runtime fuse these nodes into int8
convolutions.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import create_transform, normalizer
from ..data.images import read_image
from ..models.inputs import image_shape, preprocessing
from .deployment import inner_model, require_deployable
from .engines import EngineModel, default_engine, require_engine
from .graph_export import describe, write_onnx_of_any_size

MIN_IMAGES = 16
CALIBRATION_IMAGES = 256  # that are used of a folder
BATCH_SIZE = 8
AGREEMENT = 0.99  # of the calibration images, whose top-1 must not change
MAX_DIFFERENCE = 0.1  # of the largest value, for models without a classifier

_ATTENTION = r'\.(hidden|difference|attn|unit\.fc[12])\.'
# Layers that stay in float32, by the names of their weights; the first choice that is accurate enough is taken.
_CHOICES = {
    'none': None,
    'attention': _ATTENTION,
    'attention, stem and classifier': rf'{_ATTENTION}|^(conv1|conv_stem|fc|head|classifier)\.',
}


def quantize(
    model: nn.Module,
    images: Iterable[Any],
    *,
    input_size: Sequence[int] | None = None,
    engine: str | None = None,
) -> EngineModel:
    """Quantize a model to int8.

    The layers that stay in float32 (none, the attention, or also the stem and the classifier) are chosen on the
    calibration images: the first choice that leaves the top-1 of 99 % of them as it is, otherwise the best one. Without
    a classifier, it is the first one whose outputs differ by at most a tenth of the largest.

    Args:
        model: A model in eval mode, which is not changed.
        images: Batches of normalized images [B, C, H, W], or of pairs of images and labels, as a loader yields them; at
            least 16 images, of the kind that the model will see. All are kept in memory.
        input_size: Channels, height and width; None for those of the model's checkpoint.
        engine: 'openvino' or 'onnxruntime'; None for the former where it is installed.

    Returns:
        The quantized model. Its `metadata['int8']` has the layers in float32, the share of calibration images with
        unchanged top-1 (if there is a classifier), and the largest difference of an output as a share of the largest
        output. `timm_sk.export` writes it to a file. It takes other batches and sizes, if the model does.

    Raises:
        ValueError: If there are too few images or of another size, the model is in train mode, a package is missing, or
            an operation cannot be exported.
    """
    engine = engine or default_engine()
    require_engine(engine)
    model = inner_model(model)
    require_deployable(model)
    shape = image_shape(model, BATCH_SIZE, input_size)
    calibration = _collect(images, shape)
    candidates: list[EngineModel] = []
    with tempfile.TemporaryDirectory() as folder:
        metadata = describe(model, shape)
        float32 = write_onnx_of_any_size(model, calibration[:2], Path(folder, 'float32.onnx'), metadata)
        expected = _outputs(EngineModel(float32, engine), calibration)
        for kept, pattern in _CHOICES.items():
            graph = _quantize(float32, calibration, pattern)
            outputs = _outputs(EngineModel(graph, engine), calibration)
            found = _compare(outputs, expected, bool(metadata.get('num_classes')))
            notes = metadata | {'int8': found | {'float32_layers': kept}}
            candidates.append(EngineModel(_with_metadata(graph, notes), engine))
            if _score(found) >= (AGREEMENT if 'agreement' in found else -MAX_DIFFERENCE):
                break
    return max(candidates, key=lambda candidate: _score(candidate.metadata['int8']))


def _score(found: Mapping[str, float]) -> float:
    return found.get('agreement', -found['difference'])


def load_calibration(
    model: nn.Module,
    paths: Iterable[Path],
    input_size: Sequence[int] | None = None,
    *,
    limit: int = CALIBRATION_IMAGES,
) -> Tensor:
    """Read calibration images, preprocessed for a model: [N, C, H, W].

    Of more files than the limit, as many are taken at equal distances. `input_size` is as for `quantize`.

    Raises:
        ValueError: If there are fewer than 16 images, or one cannot be read.
    """
    files = list(paths)
    step = max(1, len(files) / limit)
    files = [files[int(index * step)] for index in range(min(len(files), limit))]
    if len(files) < MIN_IMAGES:
        raise ValueError(f'Calibration takes at least {MIN_IMAGES} images, got {len(files)}.')
    config = preprocessing(model, any_channels=True, input_size=input_size)
    transform, channels = create_transform(**config), config['input_size'][0]
    prepare = normalizer(config['mean'], config['std'], torch.device('cpu'))
    return prepare(torch.stack([torch.as_tensor(transform(read_image(file, channels))) for file in files]))


def _collect(images: Iterable[Any], shape: Sequence[int]) -> Tensor:
    """The calibration images as one tensor [N, C, H, W]."""
    batches: list[Tensor] = []
    for batch in images:
        x = batch if isinstance(batch, Tensor) else batch[0]
        if x.dim() != 4 or list(x.shape[1:]) != list(shape[1:]):
            raise ValueError(
                f'Calibration images must be batches [B, {", ".join(map(str, shape[1:]))}], got {list(x.shape)}: '
                'preprocess them for the model, or pass input_size.'
            )
        if not x.is_floating_point():
            raise ValueError(f'Calibration images must be normalized floating-point numbers, got {x.dtype}.')
        batches.append(x.detach().float().cpu())
    count = sum(len(batch) for batch in batches)
    if count < MIN_IMAGES:
        raise ValueError(f'Calibration takes at least {MIN_IMAGES} images, got {count}.')
    return torch.cat(batches)


def _quantize(float32: Path, calibration: Tensor, kept: str | None) -> bytes:
    """Add QDQ nodes to an ONNX model, except at layers whose weights' names match a pattern."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration.split(BATCH_SIZE))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {'images': batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = (Path(folder, f'{name}.onnx') for name in ('prepared', 'quantized'))
        quant_pre_process(float32, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_nodes_of_weights(prepared, kept) if kept else [],
        )
        return quantized.read_bytes()


def _nodes_of_weights(path: Path, pattern: str) -> list[str]:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [
        node.name
        for node in graph.node
        if node.op_type in ('Conv', 'Gemm', 'MatMul') and re.search(pattern, node.input[1])
    ]


def _outputs(model: EngineModel, images: Tensor) -> Tensor:
    """Logits, or the last feature map, of all images."""
    outputs = [model(batch) for batch in images.split(BATCH_SIZE)]
    return torch.cat([output if isinstance(output, Tensor) else output[-1] for output in outputs])


def _compare(found: Tensor, expected: Tensor, has_classifier: bool) -> dict[str, float]:
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    result = dict(difference=difference, images=len(found))
    if has_classifier:
        result['agreement'] = (found.argmax(1) == expected.argmax(1)).float().mean().item()
    return result


def _with_metadata(graph: bytes, metadata: dict[str, Any]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(model, {'timm_sk': json.dumps(metadata, sort_keys=True)})
    return bytes(model.SerializeToString())
