"""The checkpoint of a run: what a damaged or hostile one raises, and that every optimizer's state is restored."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from finetune_runs import draw_folder, flat, read_last, small

from timm_sk import shapes
from timm_sk.distributed import DistributedContext
from timm_sk.finetune import Config, finetune
from timm_sk.finetune.run_checkpoint import BEST, LAST, ResumeError, load_best, read, restore, save
from timm_sk.finetune.train_state import TrainState, build_train_state

ONE, CLASSES = DistributedContext(), len(shapes.CLASS_NAMES)


def new_state(config: Config) -> TrainState:
    return build_train_state(config, timm.create_model('sknet_atto', num_classes=CLASSES), ONE, 3)


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """Settings of a run of one epoch, and its last checkpoint."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('saved')
    config = small(draw_folder(folder / 'data'), folder / 'run', epochs=1, save_every=0)
    finetune(config)
    return config, read_last(folder / 'run')


def with_entry(content: Any, path: str, value: Any) -> Any:
    """A copy with another value in nested containers; without the entry, if the value is `...`."""
    copied = inner = copy.deepcopy(content)
    *above, last = [int(key) if key.isdigit() else key for key in path.split('/')]
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return copied


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('config', [1], 'config is of type list and length 1, expected a mapping'),
        ('config/lr', 'high', 'config: lr must be of type float'),
        ('config/lrr', 1, 'config: unknown setting lrr. Nearest: lr'),
        ('config/epochs', -1, 'epochs must be above 0, got -1'),
        ('state_dict', ..., 'state_dict is of type NoneType, expected a mapping'),
        ('state_dict/fc.bias', ..., "state_dict has other entries than expected: 'fc.bias'"),
        ('state_dict/extra', 1, "state_dict has other entries than expected: 'extra'"),
        (
            'state_dict_ema/fc.bias',
            torch.full((CLASSES,), math.nan),
            'state_dict_ema.fc.bias has NaN, infinite or too large values',
        ),
        ('optimizer', 1, 'optimizer is of type int, expected a mapping'),
        ('optimizer/state', 5, 'optimizer.state is of type int, expected a mapping'),
        ('optimizer/state', True, 'optimizer.state is of type bool, expected a mapping'),
        ('optimizer/state', [5], 'optimizer.state is of type list and length 1, expected a mapping'),
        ('optimizer/state', [[1]], 'optimizer.state is of type list and length 1, expected a mapping'),
        ('optimizer/state', torch.ones(2), 'optimizer.state is a tensor [2] of torch.float32, expected a mapping'),
        ('optimizer/state/0', 5, 'optimizer.state.0 is of type int, expected a mapping'),
        ('optimizer/state/0/lookahead_slow_buff', 1, 'optimizer.state.0 has other entries than expected'),
        ('optimizer/state/0/step', torch.tensor(math.nan), 'optimizer.state.0.step has NaN, infinite or too large'),
        ('optimizer/param_groups/0/lr', math.inf, 'optimizer.param_groups[0].lr has NaN, infinite or too large'),
        ('optimizer/param_groups/0/lr', 10**400, 'optimizer.param_groups[0].lr has NaN, infinite or too large'),
        ('optimizer/param_groups/0/params/1', 0, 'optimizer.param_groups has other params than expected'),
        ('optimizer/state/0/exp_avg', torch.zeros(1), 'optimizer.state.0.exp_avg is a tensor [1] of torch.float32'),
        ('optimizer/state/0/step', 'x', 'optimizer.state.0.step is of type str, expected a tensor []'),
        ('optimizer/state/0/exp_avg_sq', ..., "optimizer.state.0 has other entries than expected: 'exp_avg_sq'"),
        ('optimizer/state/999', {}, 'optimizer.state has other entries than expected: 999'),
        ('optimizer/param_groups/0/lr', None, 'optimizer.param_groups[0].lr is of type NoneType'),
        ('optimizer/param_groups/0/params', [0], 'optimizer.param_groups[0].params is of type list and length 1'),
        ('scaler', None, 'scaler is of type NoneType, expected a mapping'),
        ('progress', [], 'progress is of type list and length 0, expected a mapping'),
        ('progress/epoch', 'x', 'progress.epoch is of type str, expected of type int'),
        ('progress/epoch', 7, 'progress has epoch 7, images 0, updates 6 and 1 epochs of 48 images in its history'),
        ('progress/updates', 49, 'progress has epoch 1, images 0, updates 49'),
        ('progress/updates', 10**30, 'progress.updates has NaN, infinite or too large values'),
        ('progress/images', 48, 'progress has epoch 1, images 48'),
        ('progress/seconds', math.nan, 'progress.seconds has NaN, infinite or too large values'),
        ('progress/history/0/lr', math.inf, 'progress.history[0].lr has NaN, infinite or too large values'),
        ('progress/updates', -1, 'progress has epoch 1, images 0, updates -1'),
        ('progress/sums', torch.zeros(3), 'progress.sums is a tensor [3] of torch.float32'),
        ('progress/history/0/val_top1', 'x', 'progress.history[0].val_top1 is of type str'),
        ('progress/history/0/=1', 0.5, "progress.history[0] has other entries than expected: '=1'"),
        ('progress/best', None, 'progress.best is of type NoneType'),
        ('progress/bad', [1], 'progress.bad[0] is of type int'),
    ],
)
def test_invalid_entries(saved: Any, tmp_path: Path, path: str, value: Any, message: str) -> None:
    config, content = saved
    state = new_state(config)
    torch.save(with_entry(content, path, value), tmp_path / LAST)
    with pytest.raises(ResumeError) as error:
        restore(tmp_path, state, config, ONE, data=content['data'], images_per_epoch=48)
    assert str(error.value).startswith(f'{tmp_path / LAST} is not a checkpoint of this run: {message}')
    assert str(error.value).endswith('. Remove it to start again, or choose another --output.')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('weights', [None, {'fc.bias': torch.zeros(3)}, 'text'])
def test_invalid_best_weights(tmp_path: Path, weights: Any) -> None:
    torch.save(dict(format_version=1, state_dict=weights), tmp_path / BEST)
    with pytest.raises(ResumeError, match=r'best\.pt is not a checkpoint of this run: state_dict '):
        load_best(tmp_path, timm.create_model('sknet_atto'))
    with pytest.raises(ResumeError, match=r'best\.pt cannot be read: no such file\. Remove it'):
        load_best(tmp_path / 'gone', timm.create_model('sknet_atto'))


def slow_key() -> tuple[Any, ...]:
    """Nested tuples that share their parts: 2**60 to hash."""
    key: tuple[Any, ...] = ()
    for _ in range(60):
        key = (key, key)
    return key


class SlowMapping:
    def __reduce__(self) -> Any:
        return dict, (), None, None, iter([(slow_key(), 1)])


class Code:
    def __reduce__(self) -> Any:
        return print, ('executed',)


def test_hostile_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(dict(format_version=1, config=SlowMapping()), tmp_path / 'slow.pt')
    with pytest.raises(ResumeError, match=r'slow\.pt cannot be read: its pickle .*\. Remove it to start again'):
        read(tmp_path / 'slow.pt')
    torch.save(dict(format_version=1, config=Code()), tmp_path / 'code.pt')
    with pytest.raises(ResumeError, match=r"code\.pt cannot be read: its pickle names '.*print'") as error:
        read(tmp_path / 'code.pt')
    assert 'weights_only' not in str(error.value)
    assert 'executed' not in capsys.readouterr().out


# Each keeps a state of another kind.
OPTIMIZERS = ('sgd', 'adamw', 'adafactor', 'adafactorbv', 'lamb', 'lion', 'muon', 'rmsproptf', 'lookahead_adamw')


@pytest.mark.deep
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizers(name: str, tmp_path: Path) -> None:
    config = small(tmp_path, tmp_path, opt=name, model_ema=False)
    state = new_state(config)
    for _ in range(8):
        for parameter in state.model.parameters():
            parameter.grad = 0.01 * torch.randn_like(parameter)
        state.optimizer.step()
    save(tmp_path, state, config, ONE, data='some')
    restored = new_state(config)
    restore(tmp_path, restored, config, ONE, data='some', images_per_epoch=48)
    found, expected = (dict(flat(each.optimizer.state_dict(), '')) for each in (restored, state))
    assert found == expected
