"""What a run shows: lines or a bar, metrics.csv, TensorBoard's events, and the images at its end."""

import csv
import io
import os

import pytest
import torch
from PIL import Image
from rich.console import Console

from timm_sk.finetune import curves, run_report
from timm_sk.finetune.run_report import Report, draw_confusion, draw_curves

ROW = dict(train_loss=1.25, train_top1=40.5, val_loss=1.0, val_top1=62.5, val_top5=99.0, lr=0.001)
ROW |= dict(images_per_s=1234.4, wait_share=0.031, seconds=12.5)


def history(epochs):
    return [dict(epoch=epoch, **{name: value * (1 + epoch) for name, value in ROW.items()}) for epoch in range(epochs)]


@pytest.fixture
def printed(monkeypatch):
    """What goes to a standard error that is no terminal."""
    console = Console(file=io.StringIO(), width=120)
    monkeypatch.setattr('timm_sk.console.err', console)
    return console.file


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(run_report.time, 'monotonic', lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(printed, clock, tmp_path):
    told = Report(tmp_path / 'run', active=True)
    with told.epoch(1, 20, steps=10, first=2) as step:
        for _ in range(8):
            clock[0] += 13
            step(dict(loss=0.51234, top1=87.5, images_per_s=1234.4))
    told.finish_epoch(history(2))
    lines = printed.getvalue().splitlines()
    assert lines == [
        'epoch 2/20, step 5/10: loss 0.5123, top-1 87.50 %, 1,234 images/s, 1:05 left',
        'epoch 2/20, step 8/10: loss 0.5123, top-1 87.50 %, 1,234 images/s, 0:26 left',
        'epoch 2/20: loss 2.5, top-1 81.00 %, validation loss 2, top-1 125.00 %, top-5 198.00 %, lr 0.002, '
        '2,469 images/s, waiting 6.2%, 25 s',
    ]


def test_a_bar_on_a_terminal_that_is_gone_afterwards(monkeypatch, tmp_path):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    monkeypatch.setattr('timm_sk.console.err', console)
    told = Report(tmp_path, active=True)
    with told.epoch(0, 3, steps=4, first=1) as step:
        step(dict(loss=0.75, top1=50.0, images_per_s=10.0))
    shown = console.file.getvalue()
    assert 'epoch 1/3' in shown
    assert '2/4 loss 0.75, top-1 50.00 %, 10 images/s' in shown
    assert max(len(line.split('\x1b')[0]) for line in shown.splitlines()) <= 100
    assert shown.rstrip('\r\n').endswith('\x1b[2K')  # the line is erased


def test_the_bar_is_gone_after_an_error_too(monkeypatch, tmp_path):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    monkeypatch.setattr('timm_sk.console.err', console)
    with pytest.raises(KeyboardInterrupt), Report(tmp_path, active=True).epoch(0, 3, steps=4):
        raise KeyboardInterrupt
    assert console.file.getvalue().rstrip('\r\n').endswith('\x1b[2K')


def test_metrics_are_whole_at_any_time(printed, tmp_path, monkeypatch):
    told = Report(tmp_path, active=True)
    told.finish_epoch([dict(epoch=0, val_loss=1 / 3, seconds=7)])
    told.finish_epoch([dict(epoch=0, val_loss=1 / 3, seconds=7), dict(epoch=1, val_loss=2e-9, lr=None)])
    text = (tmp_path / 'metrics.csv').read_text()
    assert text == 'epoch,val_loss,seconds,lr\n0,0.333333,7,\n1,2e-09,,\n'
    told.finish_epoch(history(3))
    with (tmp_path / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(history(1)[0])
    assert [row['images_per_s'] for row in rows] == ['1234.4', '2468.8', '3703.2']

    def full(descriptor):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        told.finish_epoch(history(4))
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.csv']
    assert len((tmp_path / 'metrics.csv').read_text().splitlines()) == 4


def test_one_line_is_one_line(printed, tmp_path):
    Report(tmp_path, active=True).say('Saved [bold]\n  in x.' + 'y' * 150)
    assert printed.getvalue() == 'Saved [bold] in x.' + 'y' * 150 + '\n'


def test_other_processes_do_nothing(printed, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, 'find_spec', lambda name: None)
    told = Report(tmp_path / 'run', active=False, tensorboard=True)
    with told.epoch(0, 1, steps=1) as step:
        step(dict(loss=1.0))
    told.finish_epoch(history(1))
    told.say('hello')
    told.close()
    assert (printed.getvalue(), list(tmp_path.iterdir())) == ('', [])


def test_tensorboard(printed, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = Report(tmp_path, active=True, tensorboard=True)
    for epochs in (1, 2):
        told.finish_epoch(history(epochs))
    told.close()
    told.close()
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    names = ['images/per_s', 'lr', 'seconds', 'train/loss', 'train/top1', 'val/loss', 'val/top1', 'val/top5']
    assert sorted(events.Tags()['scalars']) == [*names, 'wait/share']
    assert [(event.step, event.value) for event in events.Scalars('val/top1')] == [(1, 62.5), (2, 125.0)]


def test_missing_libraries_are_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'tensorboard, which is not installed: pip install "timm_sk\[tensorboard\]"'):
        Report(tmp_path, active=True, tensorboard=True)
    monkeypatch.setattr(curves, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'matplotlib, which is not installed: pip install "timm_sk\[finetune\]"'):
        Report(tmp_path, active=True)


@pytest.mark.parametrize('epochs', [1, 3, 50])
def test_curves(epochs, tmp_path):
    rows = history(epochs)
    draw_curves(rows, tmp_path / 'curves.png')
    assert Image.open(tmp_path / 'curves.png').size == (1575, 510)
    loss, accuracy, lr = curves.curves_of(rows).axes
    assert [axes.get_ylabel() for axes in (loss, accuracy, lr)] == ['loss', 'accuracy, %', 'learning rate']
    assert {axes.get_xlabel() for axes in (loss, accuracy, lr)} == {'epoch'}
    drawn = {line.get_label(): line for axes in (loss, accuracy) for line in axes.lines}
    assert list(drawn) == ['training', 'validation', 'training, top-1', 'validation, top-1', 'validation, top-5']
    assert list(drawn['validation, top-5'].get_ydata()) == [row['val_top5'] for row in rows]
    assert list(lr.lines[0].get_ydata()) == [row['lr'] for row in rows]
    assert list(lr.lines[0].get_xdata()) == list(range(1, epochs + 1))
    for axes in (loss, accuracy):  # told apart without colours, and a point is seen
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)
        assert all((line.get_marker() not in ('None', None)) == (epochs < 15) for line in axes.lines)
        least, most = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if least <= tick <= most and tick != int(tick)] == []


def test_curves_of_what_is_there(tmp_path):
    loss, accuracy, lr = curves.curves_of([dict(val_loss=1.0, train_top1=None), dict(val_loss=float('nan'))]).axes
    assert [len(axes.lines) for axes in (loss, accuracy, lr)] == [1, 0, 0]
    with pytest.raises(ValueError, match='no epoch yet'):
        draw_curves([], tmp_path / 'curves.png')
    assert not list(tmp_path.iterdir())


def test_confusion_of_a_few_classes(tmp_path):
    to_rgb = pytest.importorskip('matplotlib.colors').to_rgb
    counts = torch.tensor([[9, 1, 0], [0, 4, 4], [0, 0, 0]])
    names = ['cat', 'a cost of $5 and $6', 'a name of far too many letters']
    draw_confusion(counts, names, tmp_path / 'confusion.png')
    assert Image.open(tmp_path / 'confusion.png').format == 'PNG'
    axes = curves.confusion_of(counts, names).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted class', 'true class')
    expected = torch.tensor([[0.9, 0.1, 0], [0, 0.5, 0.5], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(axes.images[0].get_array().data), expected)
    texts = {text.get_position(): (text.get_text(), to_rgb(text.get_color())[0]) for text in axes.texts}
    assert texts == {(0, 0): ('9', 1.0), (1, 0): ('1', 0.0), (1, 1): ('4', 1.0), (2, 1): ('4', 1.0)}
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ['cat', r'a cost of \$5 and \$6', 'a name of…ny letters']


def test_confusion_of_many_classes_lists_the_worst_pairs(tmp_path):
    counts = 50 * torch.eye(100, dtype=torch.int64)
    counts[7, 3], counts[3, 7], counts[98, 99] = 30, 5, 5
    counts[98, 98] = 5
    names = [f'species {index}' for index in range(100)]
    draw_confusion(counts, names, tmp_path / 'confusion.png')
    image, beside, _ = curves.confusion_of(counts, names).axes
    assert not image.texts
    assert image.images[0].get_array().shape == (100, 100)
    pairs, figures = (text.get_text().splitlines()[1:] for text in beside.texts)
    assert pairs == [f'species {truth} taken for species {guess}' for truth, guess in ((7, 3), (98, 99), (3, 7))]
    assert figures == ['30 (38%)', '5 (50%)', '5 (9%)']
    many = torch.ones(40, 40)
    assert len(curves.most_confused(many, many)) == curves.MOST_PAIRS


def test_confusion_needs_a_name_for_each_class(tmp_path):
    with pytest.raises(ValueError, match=r'2 names do not fit a confusion of shape \[3, 3\]'):
        draw_confusion(torch.eye(3), ['a', 'b'], tmp_path / 'confusion.png')
