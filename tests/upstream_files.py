"""Checkpoint files as other implementations publish them: their names, shapes and container, with filled weights.

`python tests/upstream_files.py` writes and converts one for every source of the table, and prints what came of it.
"""

import pickle
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from pretrained.readers.checkpoint_files import (
    caffe_blob,
    field,
    mindspore_value,
    mxnet_array,
    mxnet_bytes,
    torch_bytes,
    zip_bytes,
)
from pretrained.readers.tensor_bundle_files import write_bundle
from random_weights import fill
from safetensors.torch import save_file
from torch import Tensor

from timm_sk.checkpoints import CHECKPOINTS, Checkpoint, Source
from timm_sk.models._builder import shapes_of
from timm_sk.pretrained import Store
from timm_sk.pretrained.convert import LAYOUTS
from timm_sk.pretrained.import_checkpoint import store_converted

StateDict = dict[str, Tensor]


def filled_weights(row: Checkpoint) -> StateDict:
    """Weights of a row's architecture in our layout, filled from names and shapes."""
    counters = {key for key in shapes_of(row) if key.endswith('num_batches_tracked')}
    zero = {'paddle_in1k': ('fc1.bias',), 'mindspore_in1k': ('fc1.bias', 'fc2.bias')}.get(row.tag, ())
    return {
        key: torch.zeros(shape)
        if key.endswith(zero)
        else fill(key, tuple(shape), torch.int64 if key in counters else torch.float32)
        for key, shape in shapes_of(row).items()
    }


def in_their_layout(state_dict: StateDict, row: Checkpoint, source: Source) -> StateDict:
    """The same tensors under the names of a source's makers, and in their shapes."""
    layout = _layout_of(row, source)
    if not source.has_classifier:
        state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith('fc.')}
    if layout:
        theirs = LAYOUTS[layout].to_theirs(state_dict)
        return {key: blob.reshape(1, -1, 1, 1) if '/bn:' in key else blob for key, blob in theirs.items()}
    return dict(state_dict)


def in_a_detector(state_dict: StateDict, row: Checkpoint) -> StateDict:
    """The same tensors as the backbone of a detector or segmenter, if the file is one, with a head."""
    prefix = {'PyTorch-Encoding': 'pretrained.'}.get(row.origin or '', 'backbone.bottom_up.')
    if not row.tag.startswith(('ade_', 'pcontext_', 'coco_')):
        return state_dict
    return {**{prefix + key: tensor for key, tensor in state_dict.items()}, 'head.weight': torch.ones(3)}


def _layout_of(row: Checkpoint, source: Source) -> str | None:
    family = 'ResNeSt' if row.arch.startswith('resnest') else 'SK-ResNet'
    by_maker = {
        'gluoncv2_in1k': 'gluoncv2 ResNeSt',
        'mindspore_in1k': 'MindSpore Hub ResNeSt',
        'syt2_in1k': 'syt2 SKNet',
        'openmmlab': 'mmdetection ResNeSt',
    }
    if row.tag in by_maker:
        return by_maker[row.tag]
    if 'resnest/detectron' in (source.location or ''):
        return 'Detectron2 ResNeSt'
    by_format = {'caffe': 'Caffe SKNet', 'mindspore': f'MindCV {family}', 'paddle': 'PaddleClas ResNeSt'}
    by_format |= {'mxnet in zip': 'Gluon ResNeSt', 'pytorch in zip': 'pytorchcv ResNeSt'}
    by_format |= {'tensorflow': 'TensorFlow SimCLRv2'}
    if source.format in by_format and row.origin != 'PyTorch-Encoding':
        return by_format[source.format]
    if 'lucid-dl' in source.location:
        return f'Lucid 3 {family}'
    if 'lightly-ai' in (source.location or ''):
        return 'PyTorch SimCLRv2'
    if 'insight' in row.arch:
        return 'PytorchInsight SK-ResNet'
    return 'Holocron SKNet' if 'holocron' in row.arch else None


def write_original(state_dict: StateDict, row: Checkpoint, source: Source, path: Path) -> None:
    """Write a file in a source's layout and container."""
    theirs = in_a_detector(in_their_layout(state_dict, row, source), row)
    if source.format == 'safetensors':
        save_file(theirs, path)
    elif source.format == 'pytorch' and 'insight' in row.arch:
        wrapped = {f'module.{key}': tensor for key, tensor in theirs.items()}
        path.write_bytes(torch_bytes(dict(epoch=100, state_dict=wrapped, best_acc=77.5, optimizer=dict(state={}))))
    elif source.format == 'tensorflow':
        write_bundle(path.with_suffix(''), sorted(theirs.items()))
    elif 'lightly-ai' in (source.location or ''):
        path.write_bytes(torch_bytes(dict(resnet=theirs, head={'layers.3.weight': torch.ones(1)})))
    elif source.format == 'pytorch':
        path.write_bytes(torch_bytes(theirs, legacy='zhanghang1989' in source.location))
    elif source.format == 'pytorch in zip':
        path.write_bytes(zip_bytes({'net.pth': torch_bytes(theirs)}))
    elif source.format == 'mxnet in zip':
        arrays = [mxnet_array(tuple(tensor.shape), _bytes(tensor)) for tensor in theirs.values()]
        path.write_bytes(zip_bytes({'net.params': mxnet_bytes(arrays, [key.encode() for key in theirs])}))
    elif source.format == 'paddle':
        path.write_bytes(pickle.dumps({key: tensor.contiguous().numpy() for key, tensor in theirs.items()}, protocol=2))
    elif source.format == 'mindspore':
        values = (mindspore_value(k.encode(), tuple(v.shape), b'Float32', _bytes(v)) for k, v in theirs.items())
        path.write_bytes(b''.join(values))
    else:
        path.write_bytes(field(1, b'SKNet') + b''.join(_caffe_layers(theirs)))


def _caffe_layers(theirs: StateDict) -> list[bytes]:
    layers: dict[str, bytes] = {}
    for key, tensor in theirs.items():
        name = key.rpartition(':')[0]
        start = field(1, name.encode()) + field(2, b'CuDNNBatchNorm' if name.endswith('/bn') else b'Convolution')
        layers[name] = layers.get(name, start) + field(7, caffe_blob(tuple(tensor.shape), _bytes(tensor)))
    return [field(100, layer) for layer in layers.values()]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


def rehearse(row: Checkpoint, source: Source, folder: Path) -> Path:
    """Write a source's file, convert it, and check that every tensor arrived; returns the store's root.

    The hashes of the table are the real files', so this begins after their check.
    """
    weights = filled_weights(row)
    original = folder / 'original.index'
    write_original(weights, row, source, original)
    store = Store(folder / 'store')
    path = store_converted(original, row, shapes_of(row), source=source, sha256=source.sha256 or '0' * 64, store=store)
    original.unlink()
    stored = timm.models.load_state_dict(str(path))
    missing = [key for key in weights if key not in stored and not key.endswith('num_batches_tracked')]
    assert missing == ([] if source.has_classifier else ['fc.weight', 'fc.bias'])
    assert all(torch.equal(tensor, weights[key]) for key, tensor in stored.items())
    return store.root


if __name__ == '__main__':
    for row in CHECKPOINTS.values():
        for source in row.sources:
            if source.kind == 'bundled' or (sys.argv[1:] and row.name not in sys.argv[1:]):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                start = time.perf_counter()
                rehearse(row, source, Path(scratch))
                elapsed = time.perf_counter() - start
            print(f'{row.name:40} {source.kind:7} {source.format:16} all tensors equal ({elapsed:.1f} s)', flush=True)
