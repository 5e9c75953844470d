"""Our safetensors files are the format's, in our order."""

import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from timm_sk.pretrained import save_safetensors, sha256_of

TENSORS = {
    'z': torch.randn(3, 2),
    'count': torch.tensor(7),
    'a.half': torch.randn(4, 1).bfloat16(),
    'm': torch.arange(6).view(2, 3).t().double(),  # not contiguous
    'empty': torch.zeros(0, 3),
}


def test_round_trip_in_order(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_safetensors(TENSORS, path, metadata=dict(format='pt', source='test'))
    loaded = load_file(path)
    assert [k for k in loaded if k != 'empty'] == [k for k in TENSORS if k != 'empty']
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in TENSORS.items())
    with safe_open(path, 'pt') as file:
        assert file.metadata() == dict(format='pt', source='test')
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / 'plain').touch()
    save_safetensors(TENSORS, tmp_path / 'x.safetensors')
    assert stat.S_IMODE((tmp_path / 'x.safetensors').stat().st_mode) == stat.S_IMODE(
        (tmp_path / 'plain').stat().st_mode
    )


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_safetensors(TENSORS, path)
    digest = sha256_of(path)
    with pytest.raises(KeyError):
        save_safetensors({**TENSORS, 'complex': torch.zeros(1, dtype=torch.complex64)}, path)
    with pytest.raises(NotImplementedError):
        save_safetensors({**TENSORS, 'meta': torch.zeros(1, device='meta')}, path)
    assert sha256_of(path) == digest
    assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']
