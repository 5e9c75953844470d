"""Deterministic weights and inputs from names and shapes: the scheme "timm_sk-oracle-1".

Each tensor is drawn from its own stream of numpy's legacy generator, whose numbers never change, seeded with the
crc32 of its name. Every norm gets random weights, so that no residual branch is an identity.
"""

import re
import zlib

import numpy as np
import torch
from torch import Tensor, nn

Damp = tuple[tuple[str, float], ...]

# The last norm scale of each residual branch of a ResNet-like net; damped, activations do not grow with depth.
LAST_NORMS: Damp = ((r'layer\d+\.\d+\.(conv3\.bn|bn3|conv2\.bn)\.weight$', 0.25),)


def fill(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0, damp: Damp = ()) -> Tensor:
    """One tensor, by the role that its name and shape give it."""
    role = _role(name, shape)
    if role == 'counter':
        return torch.zeros(shape, dtype=dtype)
    stream = _stream(f'{seed}:{name}')
    count = int(np.prod(shape))
    if role in ('mean', 'shift'):
        values = 0.1 * stream.standard_normal(count)
    elif role in ('variance', 'scale'):
        values = 0.5 + stream.random_sample(count)
    elif role == 'layer scale':
        values = 0.1 + 0.2 * stream.random_sample(count)
    else:
        fan_in = np.prod(shape[:-1] if role == 'output last' else shape[1:])
        values = stream.standard_normal(count) * np.sqrt(2 / fan_in)
    factor = next((factor for pattern, factor in damp if re.search(pattern, name)), 1.0)
    return torch.from_numpy((values * factor).reshape(shape)).to(dtype)


def _role(name: str, shape: tuple[int, ...]) -> str:
    """What a tensor is to its layer, in the naming of PyTorch, TensorFlow, Gluon, MindSpore or Caffe (`layer:blob`)."""
    caffe_norm = re.search(r'/bn:([0-3])$', name)
    if caffe_norm:
        return ('scale', 'shift', 'mean', 'variance')[int(caffe_norm[1])]
    leaf = re.split(r'[./:]', name)[-1]
    if leaf in ('num_batches_tracked', 'global_step'):
        return 'counter'
    if leaf in ('running_mean', 'moving_mean'):
        return 'mean'
    if leaf in ('running_var', 'moving_variance'):
        return 'variance'
    if leaf in ('weight', 'gamma') and len(shape) == 1:
        return 'scale'
    if leaf in ('bias', 'beta') or name.endswith(':1'):
        return 'shift'
    if len(shape) == 1:
        return 'layer scale'
    return 'output last' if leaf == 'kernel' else 'output first'


def make_input(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """A standard normal picture batch in float32."""
    stream = _stream(f'{seed}:input:{"x".join(map(str, shape))}')
    return torch.from_numpy(stream.standard_normal(int(np.prod(shape))).reshape(shape)).float()


def fill_model(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Replace every parameter and buffer of a model in place."""
    filled = {
        name: fill(name, tuple(tensor.shape), tensor.dtype, seed=seed, damp=LAST_NORMS)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(filled)
    return model


def _stream(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))
