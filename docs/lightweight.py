"""Prints the tables of `lightweight.md`: what the lightweight nets cost, plain, with SE, with SK, and what they learn.

From the repository's root: `python docs/lightweight.py`.
"""

import csv
from pathlib import Path
from statistics import mean

import timm

import timm_sk  # noqa: F401  (registers the models)
from timm_sk.models.costs import count_macs

RESULTS = Path(__file__).resolve().parent.parent / 'benchmarks' / 'lightweight_shapes.csv'
NAMES = ('sk_shufflenetv2_x0_5', 'sk_shufflenetv2_x1_0', 'sk_mobilenetv2_100')
UNITS = ('plain', 'se', 'sk')
PAPER_MACS = {('sk_shufflenetv2_x1_0', 'se'): '141.73 M', ('sk_shufflenetv2_x1_0', 'sk'): '145.66 M'}


def table() -> str:
    """Build every net on the meta device and count, at 3x224x224 with 1000 classes."""
    lines = [
        '| `timm.create_model` | params | multiply-adds | above plain | the paper |',
        '| --- | ---: | ---: | ---: | ---: |',
    ]
    for name in NAMES:
        plain_macs = 0
        for unit in UNITS:
            model = timm.create_model(name, unit=unit, device='meta').eval()
            macs = count_macs(model, (3, 224, 224))
            plain_macs = plain_macs or macs
            call = f"`'{name}'`" if unit == 'sk' else f"`'{name}', unit='{unit}'`"
            params = sum(parameter.numel() for parameter in model.parameters())
            above, paper = (macs - plain_macs) / 1e6, PAPER_MACS.get((name, unit), '')
            lines.append(f'| {call} | {params:,} | {macs / 1e6:.2f} M | {above:.2f} M | {paper} |')
    return '\n'.join(lines)


def training_table() -> str:
    """What `weights/compare_lightweight.py` measured: top-1 of each seed, mean, and seconds of training."""
    with RESULTS.open(newline='') as file:
        rows = list(csv.DictReader(file))
    lines = ['| unit | top-1 by seed | mean | seconds |', '| --- | --- | ---: | ---: |']
    for unit in UNITS:
        runs = [row for row in rows if row['unit'] == unit]
        accuracies = [float(row['top1']) for row in runs]
        seconds = [int(row['seconds']) for row in runs]
        by_seed = ', '.join(f'{accuracy:.2f}' for accuracy in accuracies)
        lines.append(f'| {unit} | {by_seed} | {mean(accuracies):.2f} | {min(seconds)} to {max(seconds)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    print(table(), end='\n\n')
    print(training_table())
