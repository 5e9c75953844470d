"""Training starts from a file of weights, as timm's train.py writes it, without executing anything in it."""

from argparse import Namespace

import pytest
import timm
import torch
from random_weights import fill_model

from timm_sk.errors import MismatchedCheckpointError, UnreadableCheckpointError
from timm_sk.finetune.config import Config
from timm_sk.finetune.model import build_model


@pytest.fixture
def config(tmp_path):
    weights, averaged = (fill_model(timm.create_model('sknet_atto', num_classes=3)).state_dict() for _ in range(2))
    content = dict(state_dict=weights, state_dict_ema=averaged, args=Namespace(model='sknet_atto'))
    torch.save(content, tmp_path / 'last.pth.tar')
    return Config(model='sknet_atto', data='', output='', initial_checkpoint=str(tmp_path / 'last.pth.tar')), averaged


@pytest.mark.parametrize('num_classes', [0, 3])
def test_averaged_weights(config, num_classes):
    config, averaged = config
    loaded = build_model(config, num_classes).state_dict()
    assert len(loaded) == len(averaged) - (0 if num_classes else 2)
    assert all(torch.equal(tensor, averaged[key]) for key, tensor in loaded.items())
    assert not torch.equal(build_model(config, 3, initial_weights=False).fc.weight, averaged['fc.weight'])


def test_other_classes(config):
    with pytest.raises(MismatchedCheckpointError, match=r'of another shape: fc\.weight'):
        build_model(config[0], 4)


def test_not_a_checkpoint(config, tmp_path):
    config = config[0]
    (tmp_path / 'last.pth.tar').write_bytes(b'text')
    with pytest.raises(UnreadableCheckpointError, match=r'last\.pth\.tar cannot be read as a checkpoint'):
        build_model(config, 3)
    (tmp_path / 'last.pth.tar').unlink()
    with pytest.raises(FileNotFoundError, match=r'No such file: .*last\.pth\.tar'):
        build_model(config, 3)
