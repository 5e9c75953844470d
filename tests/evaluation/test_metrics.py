"""Metrics: numbers worked out by hand, several processes, errors."""

import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from indexed_images import Answers, chosen, evaluate_images, indexed_images
from ranks import run_ranks

from timm_sk.data import UnreadableSampleError
from timm_sk.distributed import DistributedContext
from timm_sk.evaluation.imagenet_labels import label_map

LABELS = [0, 1, 2, 0, 1, 2, 0, 6]
GUESSES = [0, 1, 1, 0, 2, 2, 1, 6]  # 5 of 8 are right


def evaluated(logits, labels=LABELS, *, broken=(), **kwargs):
    images = indexed_images(labels)
    read = images.read

    def fail_or_read(index):
        if index in broken:
            raise UnreadableSampleError(f'{index}.png: broken')
        return read(index)

    images.read = fail_or_read
    return evaluate_images(images, logits, **kwargs)


@pytest.mark.parametrize('batch_size', [1, 3, 8])
def test_metrics_by_hand(batch_size):
    seen = []
    found = evaluated(chosen(GUESSES, 7), batch_size=batch_size, on_batch=seen.append)
    assert (found.count, found.top1, found.bad) == (8, 62.5, [])
    assert found.per_class == [200 / 3, 50, 50, None, None, None, 100]
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for truth, guess in zip(LABELS, GUESSES, strict=True):
        expected[truth, guess] += 1
    assert found.confusion.dtype == torch.int64
    assert torch.equal(found.confusion, expected)
    right, wrong = math.log(math.e + 6) - 1, math.log(math.e + 6)
    assert found.loss == pytest.approx((5 * right + 3 * wrong) / 8, abs=1e-7)
    assert found.images_per_second > 0
    assert sum(seen) == 8


def test_top5():
    ranks = torch.tensor([[0, 1, 2, 3, 4, 5, 6]] * 3 + [[6, 5, 4, 3, 2, 1, 0]])  # place of each class, best first
    found = evaluated(-ranks.float(), [0, 4, 5, 1])
    assert (found.top1, found.top5) == (25, 50)
    found = evaluated(chosen([0, 1, 1, 2], 3), [0, 1, 2, 0])
    assert (found.top1, found.top5) == (50, 100)


def test_calibration_error():
    """Two images at confidence 0.9 (one right), four at 0.7 (all right): (2 x 0.4 + 4 x 0.3) / 6."""
    odds = [math.log(9)] * 2 + [math.log(7 / 3)] * 4
    logits = torch.tensor([[odd, 0.0] for odd in odds])
    found = evaluated(logits, [0, 1, 0, 0, 0, 0])
    assert found.ece == pytest.approx((2 * 0.4 + 4 * 0.3) / 6, abs=1e-6)


def test_nan_logits():
    logits = chosen(GUESSES, 7)
    logits[3] = float('nan')
    found = evaluated(logits)
    assert math.isnan(found.loss)
    assert math.isnan(found.ece)
    assert found.count == 8


def test_ties_as_in_timm():
    from timm.utils import accuracy

    logits = torch.randn(64, 7).mul(2).round().div(2)  # many ties
    labels = torch.randint(7, [64], generator=torch.Generator().manual_seed(1))
    expected = accuracy(logits, labels, topk=(1, 5))
    found = evaluated(logits, labels.tolist(), batch_size=64)
    assert [found.top1, found.top5] == [value.item() for value in expected]
    assert sum((row == row.max()).sum() > 1 for row in logits) > 5


def test_unreadable_images():
    found = evaluated(chosen(GUESSES, 7), broken=(2, 5))
    assert (found.count, found.top1) == (6, pytest.approx(100 * 4 / 6))
    assert found.bad == ['2.png: broken', '5.png: broken']
    assert evaluated(chosen(GUESSES, 7), broken=(3, 4, 5)).count == 5  # a batch of none
    assert evaluated(chosen(GUESSES, 7), broken=(2, 5), max_bad=2).count == 6
    with pytest.raises(
        ValueError, match=r'2 images cannot be read, --max-bad-images allows 1: 2.png: broken; 5.png: b'
    ):
        evaluated(chosen(GUESSES, 7), broken=(2, 5), max_bad=1)
    with pytest.raises(ValueError, match=r'No image to evaluate on: 0.png: broken; .* and 5 more'):
        evaluated(chosen(GUESSES, 7), broken=range(8))


def test_modes_are_restored():
    model = Answers(chosen(GUESSES, 7)).train()
    model.norm.eval()
    for labels in (LABELS, [9] * 8):
        try:
            evaluated(model.logits, labels, model=model)
        except ValueError:
            assert labels is not LABELS
        assert [module.training for module in model.modules()] == [True, False]
    assert model.logits.grad_fn is None


def test_autocast():
    weight = torch.randn(12, 7)

    class Linear(Answers):
        def forward(self, x):
            out = F.linear(x.flatten(1), weight.T)
            kinds.append(out.dtype)
            return out

    kinds = []
    model = Linear(torch.zeros(8, 7))
    found = evaluated(model.logits, model=model, autocast=partial(torch.autocast, 'cpu', dtype=torch.bfloat16))
    assert set(kinds) == {torch.bfloat16}
    assert 0 < found.ece < 1


@pytest.mark.parametrize(
    ('labels', 'kwargs', 'message'),
    [
        ([0, 1, -1], {}, 'images without a label'),
        ([0, 1, 7], {}, 'has a label 7, but there are 7 classes'),
        ([0, 1, 2], dict(num_classes=9), 'The model has 7 classes, the labels have 9'),
        ([0, 1, 2], dict(label_map=label_map('v2'), num_classes=1000), "models of ImageNet's 1000 classes, this one"),
    ],
)
def test_invalid_labels(labels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluated(torch.zeros(3, 7), labels, **kwargs)


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchmetrics', None)
    with pytest.raises(ValueError, match=r'torchmetrics is not installed: pip install "timm_sk\[finetune\]"'):
        evaluated(chosen(GUESSES, 7))


SHARED = ((LABELS[:7], ()), (LABELS, (3,)), (LABELS[:1], ()))  # labels, and broken images
FAILING = (([0, 1, 2, -1], ()), (LABELS, (1,)))  # only the second process sees the error


def evaluate_in_rank(rank, device):
    context = DistributedContext(rank=rank, size=2)
    found = [
        vars(evaluated(chosen(GUESSES, 7), labels, broken=broken, context=context, batch_size=2))
        for labels, broken in SHARED
    ]
    for labels, broken in FAILING:
        with pytest.raises(ValueError, match='image') as error:
            evaluated(chosen(GUESSES, 7), labels, broken=broken, context=context, batch_size=2, max_bad=0)
        found.append(str(error.value))
    return found


@pytest.mark.deep
def test_two_processes(tmp_path, monkeypatch):
    """7 images, 8 with a broken one, and 1, so that the second process has none."""
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    first, second = run_ranks(evaluate_in_rank, tmp_path, devices=['cpu'] * 2)
    assert str(first) == str(second)
    for (labels, broken), line in zip(SHARED, first, strict=False):
        expected = evaluated(chosen(GUESSES, 7), labels, broken=broken)
        for name in ('count', 'top1', 'top5', 'per_class', 'bad'):
            assert line[name] == getattr(expected, name)
        assert torch.equal(line['confusion'], expected.confusion)
        assert [line['loss'], line['ece']] == pytest.approx([expected.loss, expected.ece], abs=1e-7)
    assert first[3].startswith('The data set has images without a label')
    assert first[4].startswith('1 image cannot be read, --max-bad-images allows 0: 1.png: broken.')
