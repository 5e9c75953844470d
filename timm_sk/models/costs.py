"""Parameters and multiply-adds of every architecture, stored in costs.csv beside this file.

After adding an architecture, run `python docs/costs.py`.
"""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints import Checkpoint

FILE = Path(__file__).with_name('costs.csv')

Cost = tuple[int, int]


def count_macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds of all convolutions and matrix products in one forward pass of one image.

    Args:
        model: The model, in eval mode; on the meta device nothing is computed.
        input_size: (channels, height, width).
    """
    parameter = next(model.parameters())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, *input_size, device=parameter.device, dtype=parameter.dtype))
    return counter.get_total_flops() // 2


def cost(row: Checkpoint) -> Cost:
    """Parameters and multiply-adds of a checkpoint's architecture, from the file or else counted."""
    return counted().get(shape(row)) or count(*shape(row))


@cache
def counted() -> dict[tuple[str, int, tuple[int, ...]], Cost]:
    """The costs in the file, by `shape`."""
    costs = {}
    with FILE.open(newline='', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            input_size = tuple(map(int, row['input_size'].split('x')))
            costs[row['arch'], int(row['num_classes']), input_size] = int(row['params']), int(row['macs'])
    return costs


@cache
def count(arch: str, num_classes: int, input_size: tuple[int, ...]) -> Cost:
    """Count on the meta device; a deep net takes a second."""
    model = timm.create_model(arch, num_classes=num_classes, in_chans=input_size[0], device='meta').eval()
    return sum(parameter.numel() for parameter in model.parameters()), count_macs(model, input_size)


def shape(row: Checkpoint) -> tuple[str, int, tuple[int, ...]]:
    """Architecture, number of classes and input size, which determine the costs."""
    return row.arch, row.num_classes, row.input_size
