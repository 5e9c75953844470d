"""Prints the tables of `sknet.md`: the paper's ablations and controls as calls, with parameters and multiply-adds.

From the repository's root: `python docs/ablations.py`.
"""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import timm

import timm_sk  # noqa: F401  (registers the models)
from timm_sk.models.costs import count_macs

TEST_SIZES = (224, 320)
KERNELS = {'K3': 3, 'K5': 5, 'K7': 7}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One net of a table.

    Attributes:
        label: What the paper calls it.
        kwargs: Arguments of `timm.create_model`.
        name: The architecture.
        branches: (kernel size, dilation, groups) of each branch's convolution.
        selects: Whether the branches are selected among, and not just summed.
    """

    label: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = 'sknet50'
    branches: list[tuple[int, int, int]] = field(default_factory=list)
    selects: bool = True


def _second_branch(label: str, branch: tuple[int, int, int], **sk_kwargs: Any) -> Row:
    """A row of Table 6: the first branch is always 3x3 with G=32."""
    return Row(label=label, kwargs=dict(sk_kwargs=sk_kwargs), branches=[(3, 1, 32), branch])


TABLE_6 = [
    _second_branch('3x3, D=3, G=32', (3, 3, 32), kernel_size=[3, 7]),
    _second_branch('3x3, D=2, G=32', (3, 2, 32), kernel_size=[3, 5]),
    _second_branch('5x5, D=1, G=64', (5, 1, 64), kernel_size=[3, 5], keep_3x3=False, groups=[32, 64]),
    _second_branch('7x7, D=1, G=128', (7, 1, 128), kernel_size=[3, 7], keep_3x3=False, groups=[32, 128]),
]


def _subset(kernels: tuple[str, ...], selects: bool) -> Row:
    """A row of Table 7: 3x3 kernels of dilation 1, 2 and 3 that stand for 3x3, 5x5 and 7x7."""
    sizes = [KERNELS[kernel] for kernel in kernels]
    sk_kwargs: dict[str, Any] = dict(kernel_size=sizes)
    if not selects:
        sk_kwargs['attention'] = False
    return Row(
        label=f'{" + ".join(kernels)}, {"SK" if selects else "sum"}',
        kwargs=dict(sk_kwargs=sk_kwargs),
        branches=[(3, (size - 1) // 2, 32) for size in sizes],
        selects=selects,
    )


TABLE_7 = [
    _subset(kernels, selects)
    for count in range(1, len(KERNELS) + 1)
    for kernels in combinations(KERNELS, count)
    for selects in (False, True)
]

CONTROLS = [
    Row(label='ResNeXt-50', name='resnext50_32x4d'),
    Row(label='ResNeXt-53, one unit deeper', name='resnext50_32x4d', kwargs=dict(layers=[3, 4, 7, 3])),
    Row(label='ResNeXt-56, two units deeper', name='resnext50_32x4d', kwargs=dict(layers=[3, 4, 8, 3])),
    Row(label='ResNeXt-50, wider (32x5d)', name='resnext50_32x4d', kwargs=dict(base_width=5)),
    Row(label='ResNeXt-50, 36x4d', name='resnext50_32x4d', kwargs=dict(cardinality=36)),
]


def _call(row: Row) -> str:
    arguments = ''.join(f', {key}={_literal(value)}' for key, value in row.kwargs.items())
    return f"`'{row.name}'{arguments}`"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={item!r}" for key, item in value.items())})'
    return repr(value)


def table(rows: list[Row]) -> str:
    """Build every net on the meta device and count."""
    header = ['net', '`timm.create_model`', 'params', *(f'GMACs at {size}' for size in TEST_SIZES)]
    lines = [header, ['---', '---', *(['---:'] * (len(header) - 2))]]
    for row in rows:
        model = timm.create_model(row.name, device='meta', **row.kwargs).eval()
        params = sum(parameter.numel() for parameter in model.parameters())
        macs = [f'{count_macs(model, (3, size, size)) / 1e9:.3f}' for size in TEST_SIZES]
        lines.append([row.label, _call(row), f'{params:,}', *macs])
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


if __name__ == '__main__':
    for rows in (TABLE_6, TABLE_7, CONTROLS):
        print(table(rows), end='\n\n')
