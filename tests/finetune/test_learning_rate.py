"""The learning rate follows from the settings and the number of images in a step, as in timm's train.py."""

import pytest

from timm_sk.finetune.config import Config
from timm_sk.finetune.train_state import resolve_lr


def test_it_is_a_thousandth_by_default():
    assert resolve_lr(Config(), 64) == resolve_lr(Config(), 4096) == 1e-3


def test_a_given_rate_goes_before_a_base_and_does_not_grow():
    config = Config(lr=0.3, lr_base=0.1)
    assert resolve_lr(config, 64) == resolve_lr(config, 512) == 0.3


@pytest.mark.parametrize(('global_batch', 'lr'), [(256, 0.1), (512, 0.2), (64, 0.025)])
def test_a_base_grows_in_proportion(global_batch, lr):
    assert resolve_lr(Config(opt='momentum', lr_base=0.1), global_batch) == pytest.approx(lr)


def test_a_base_is_for_so_many_images():
    assert resolve_lr(Config(opt='sgd', lr_base=0.18, lr_base_size=384), 768) == pytest.approx(0.36)


@pytest.mark.parametrize('opt', ['adamw', 'Adam', 'lamb', 'nadam', 'adabelief'])
def test_optimizers_like_adam_grow_by_the_root(opt):
    assert resolve_lr(Config(opt=opt, lr_base=0.1), 1024) == pytest.approx(0.2)


def test_how_it_grows_can_be_chosen():
    assert resolve_lr(Config(opt='adamw', lr_base=0.1, lr_base_scale='linear'), 1024) == pytest.approx(0.4)
    assert resolve_lr(Config(opt='sgd', lr_base=0.1, lr_base_scale='sqrt'), 1024) == pytest.approx(0.2)


def test_no_images_make_no_step():
    with pytest.raises(ValueError, match=r'global_batch must be at least 1, got 0\.'):
        resolve_lr(Config(), 0)
