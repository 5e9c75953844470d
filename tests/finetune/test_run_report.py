"""Metrics in a line, in metrics.csv and in TensorBoard, and the plots."""

import csv

import pytest
import torch
from PIL import Image

from timm_sk.finetune.curves import plot_confusion, plot_curves
from timm_sk.finetune.run_report import format_metrics, open_events, write_events, write_metrics

ROW = dict(train_loss=1.25, train_top1=40.5, val_loss=1.0, val_top1=62.5, val_top5=99.0, lr=0.001)
ROW |= dict(images_per_s=1234.4, wait_share=0.031, seconds=12.5)


def history(epochs):
    return [dict(epoch=epoch, **{name: value * (1 + epoch) for name, value in ROW.items()}) for epoch in range(epochs)]


def test_format_metrics():
    assert format_metrics(history(2)[1]) == (
        'loss 2.5, top-1 81.00 %, validation loss 2, top-1 125.00 %, top-5 198.00 %, lr 0.002, '
        '2,469 images/s, waiting 6.2%, 25 s'
    )


def test_write_metrics(tmp_path):
    write_metrics(tmp_path, [dict(epoch=0, val_loss=1 / 3, seconds=7), dict(epoch=1, val_loss=2e-9, lr=None)])
    assert (tmp_path / 'metrics.csv').read_text() == 'epoch,val_loss,seconds,lr\n0,0.333333,7,\n1,2e-09,,\n'
    write_metrics(tmp_path, history(3))
    with (tmp_path / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(history(1)[0])
    assert [row['images_per_s'] for row in rows] == ['1234.4', '2468.8', '3703.2']


def test_tensorboard_events(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_events(tmp_path) as writer:
        for epochs in (1, 2):
            write_events(writer, history(epochs))
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    names = ['images/per_s', 'lr', 'seconds', 'train/loss', 'train/top1', 'val/loss', 'val/top1', 'val/top5']
    assert sorted(events.Tags()['scalars']) == [*names, 'wait/share']
    assert [(event.step, event.value) for event in events.Scalars('val/top1')] == [(1, 62.5), (2, 125.0)]


@pytest.mark.parametrize('epochs', [1, 3, 50])
def test_plot_curves(epochs, tmp_path):
    rows = history(epochs)
    loss, accuracy, lr = plot_curves(rows, tmp_path / 'curves.png').axes
    assert Image.open(tmp_path / 'curves.png').size == (1575, 510)
    assert [axes.get_ylabel() for axes in (loss, accuracy, lr)] == ['loss', 'accuracy, %', 'learning rate']
    assert {axes.get_xlabel() for axes in (loss, accuracy, lr)} == {'epoch'}
    drawn = {line.get_label(): line for axes in (loss, accuracy, lr) for line in axes.lines}
    assert list(drawn) == ['train_loss', 'val_loss', 'train_top1', 'val_top1', 'val_top5', 'lr']
    for name, line in drawn.items():
        assert list(line.get_ydata()) == [row[name] for row in rows]
        assert list(line.get_xdata()) == list(range(1, epochs + 1))
    for axes in (loss, accuracy):  # distinguishable without colours, and a single point is visible
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)
        assert all(line.get_marker() not in ('None', None) for line in axes.lines)
        least, most = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if least <= tick <= most and tick != int(tick)] == []


def test_plot_curves_with_missing_metrics(tmp_path):
    file = tmp_path / 'curves.png'
    with pytest.raises(ValueError, match='no epoch to plot'):
        plot_curves([], file)
    assert not list(tmp_path.iterdir())
    axes = plot_curves([dict(val_loss=1.0, train_top1=None), dict(val_loss=float('nan'))], file).axes
    assert [len(panel.lines) for panel in axes] == [1, 0, 0]


def test_plot_confusion_of_few_classes(tmp_path):
    to_rgb = pytest.importorskip('matplotlib.colors').to_rgb
    counts = torch.tensor([[9, 1, 0], [0, 4, 4], [0, 0, 0]])
    names = ['cat', 'a cost of $5 and $6', 'a name of far too many letters']
    axes = plot_confusion(counts, names, tmp_path / 'confusion.png').axes[0]
    assert Image.open(tmp_path / 'confusion.png').format == 'PNG'
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted class', 'true class')
    expected = torch.tensor([[0.9, 0.1, 0], [0, 0.5, 0.5], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(axes.images[0].get_array().data), expected)
    texts = {text.get_position(): (text.get_text(), to_rgb(text.get_color())[0]) for text in axes.texts}
    assert texts == {(0, 0): ('9', 1.0), (1, 0): ('1', 0.0), (1, 1): ('4', 1.0), (2, 1): ('4', 1.0)}
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ['cat', r'a cost of \$5 and \$6', 'a name of…ny letters']


def test_plot_confusion_of_many_classes(tmp_path):
    counts = 50 * torch.eye(100, dtype=torch.int64)
    counts[7, 3], counts[3, 7], counts[98, 99] = 30, 5, 5
    counts[98, 98] = 5
    names = [f'species {index}' for index in range(100)]
    image, beside, _ = plot_confusion(counts, names, tmp_path / 'confusion.png').axes
    assert not image.texts
    assert image.images[0].get_array().shape == (100, 100)
    assert beside.texts[0].get_text().splitlines()[1:] == [
        '30 (38%)  species 7 as species 3',
        '5 (50%)  species 98 as species 99',
        '5 (9%)  species 3 as species 7',
    ]
    beside = plot_confusion(torch.ones(100, 100), names, tmp_path / 'confusion.png').axes[1]
    assert len(beside.texts[0].get_text().splitlines()) == 1 + 20


def test_plot_confusion_with_too_few_names(tmp_path):
    with pytest.raises(ValueError, match=r'2 names for a confusion matrix of shape \[3, 3\]'):
        plot_confusion(torch.eye(3), ['a', 'b'], tmp_path / 'confusion.png')
