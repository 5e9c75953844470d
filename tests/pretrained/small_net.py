"""The net whose row the loading tests give other sources."""

import hashlib

import timm
import torch
from torch import Tensor, nn

NAME = 'sknet_atto.digits'


def create(**kwargs) -> nn.Module:
    return timm.create_model(NAME, pretrained=True, **kwargs)


def assert_loaded(model: nn.Module, weights: dict[str, Tensor], *, but: str = '-') -> None:
    loaded = model.state_dict()
    different = [key for key in loaded if not key.startswith(but) and not torch.equal(loaded[key], weights[key])]
    assert not different


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
