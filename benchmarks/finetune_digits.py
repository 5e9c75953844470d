"""`sknet_atto.shapes` fine-tuned to scikit-learn's digits, beside the same net from scratch and a linear probe.

    python benchmarks/finetune_digits.py --out benchmarks/finetune_digits.csv

The held-out images are those of weights/digits_split.json. Each run is the command of docs/finetune.md in a process
of its own; its seconds are those of the whole command.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from timm_sk.bench.machine import describe

HERE = Path(__file__).resolve().parent
SPLIT = HERE.parent / 'weights' / 'digits_split.json'
RUNS = {
    'fine-tuned': ['--config', 'digits'],
    'from scratch': ['--config', 'digits', '--no-pretrained'],
    'linear probe': ['--config', 'digits', '--linear-probe', '--lr', '0.03'],
}
_LEVELS = 16  # the data set counts inked sub-pixels, 0 to 16


def write_folder(root: Path) -> Path:
    """Write the digits as a folder per class, the held-out ones as the validation part."""
    from sklearn.datasets import load_digits

    digits, held_out = load_digits(), {*json.loads(SPLIT.read_text())['held_out']}
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ('validation' if index in held_out else 'train') / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * (255 / _LEVELS)).astype(np.uint8)).save(folder / f'{index:04}.png')
    return root


def run(data: Path, folder: Path, arguments: list[str]) -> dict[str, float]:
    """One run of the command: its seconds, and the best and the last epoch's held-out accuracy in percent."""
    command = [sys.executable, '-m', 'timm_sk', 'finetune', str(data), '--output', str(folder), *arguments]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    rows = [*csv.DictReader((folder / 'metrics.csv').open())]
    top1 = [float(row['val_top1']) for row in rows]
    return dict(epochs=len(rows), last_top1=top1[-1], best_top1=max(top1), seconds=seconds)


def main(
    out: Annotated[Path, typer.Option(help='CSV to write.')] = HERE / 'finetune_digits.csv',
    seeds: Annotated[int, typer.Option(help='Runs of each kind.')] = 1,
) -> None:
    """Fine-tune to the digits in three ways, and write what came out."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = write_folder(Path(scratch) / 'digits')
        for seed in range(seeds):
            for name, arguments in RUNS.items():
                found = run(data, Path(scratch) / f'{name}-{seed}', [*arguments, '--seed', str(seed)])
                rows.append(dict(run=name, seed=seed, **found, **describe(torch.device('cpu'))))
                print(f'{name}, seed {seed}: held-out {found["last_top1"]:.2f} % in {found["seconds"]:.0f} s')
    with out.open('w', newline='') as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)


if __name__ == '__main__':
    typer.run(main)
