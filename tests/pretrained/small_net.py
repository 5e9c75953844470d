"""The net whose row has other sources in the tests of loading."""

import hashlib
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_sk.checkpoints import Source

NAME = 'sknet_atto.digits'


def create(**kwargs) -> nn.Module:
    return timm.create_model(NAME, pretrained=True, **kwargs)


def assert_loaded(model: nn.Module, weights: dict[str, Tensor], *, but: str = '-') -> None:
    loaded = model.state_dict()
    different = [key for key in loaded if not key.startswith(but) and not torch.equal(loaded[key], weights[key])]
    assert not different


def hub_source(name: str = 'makers/atto', **fields: Any) -> Source:
    return Source(kind='hub', location=name, **fields)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
