"""Accuracy of int8 models beside float32: calibrated on training images, tested on held-out ones.

`python benchmarks/int8_accuracy.py --out benchmarks/int8_accuracy.csv` quantizes the bundled nets and tests them on
their held-out images (`digits` needs scikit-learn). For another model, name it and two folders with a folder of images
for each class: `--model local-dir:FOLDER --calibrate photos/train --test photos/test`. Needs the extra `openvino`.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import timm_sk
from timm_sk import shapes
from timm_sk.bench.machine import describe
from timm_sk.data.images import find_images
from timm_sk.factory import ready_model
from timm_sk.inference.engines import ENGINES
from timm_sk.inference.int8 import load_calibration
from timm_sk.inference.prediction import class_names

sys.path.insert(0, str(Path(__file__).parent.parent / 'weights'))
COLUMNS = (
    *('model', 'engine', 'float32_layers', 'calibration_images', 'test_images', 'float32_top1', 'int8_top1'),
    *('agreement', 'difference', 'float32_bytes', 'int8_bytes', 'processor', 'versions', 'date'),
)
CALIBRATION = 256


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model')
    parser.add_argument('--calibrate', type=Path)
    parser.add_argument('--test', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    arguments = parser.parse_args()
    is_new = not arguments.out.exists()
    with tempfile.TemporaryDirectory() as scratch, arguments.out.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if is_new:
            writer.writeheader()
        named = [(arguments.model, arguments.calibrate, arguments.test)]
        for name, calibrate, test in named if arguments.model else bundled(Path(scratch)):
            for row in compare(name, calibrate, test, Path(scratch)):
                writer.writerow(row)
                print(*(row[column] for column in COLUMNS[:10]))


def bundled(folder: Path) -> list[tuple[str, Path, Path]]:
    """Name, training images and held-out images of the bundled nets."""
    from digits import Digits

    digits = Digits()
    for name, indices in (('digits-train', digits.training_indices), ('digits-test', digits.held_out_indices)):
        write_images(folder / name, digits.pixels[indices], [str(label) for label in digits.labels[indices].tolist()])
    for name, count, seed in (('shapes-train', CALIBRATION, 0), ('shapes-test', shapes.TEST_COUNT, shapes.TEST_SEED)):
        drawn, numbers = shapes.draw(count, seed=seed)
        write_images(folder / name, drawn, [shapes.CLASS_NAMES[number] for number in numbers])
    return [(f'sknet_atto.{name}', folder / f'{name}-train', folder / f'{name}-test') for name in ('digits', 'shapes')]


def write_images(folder: Path, images: Any, labels: Sequence[str]) -> None:
    """Write images as PNG files, in a folder for each class."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / label / f'{index}.png')


@torch.no_grad()
def compare(name: str, calibrate: Path, test: Path, folder: Path) -> list[dict[str, Any]]:
    """Rows of one model, for each engine that executes it in int8."""
    model: Any = ready_model(name, device='cpu')
    calibration = load_calibration(model, find_images([str(calibrate)]))
    files = sorted(test.rglob('*.*'))
    images = load_calibration(model, files, limit=len(files))
    names = class_names(model)
    labels = torch.tensor([names.index(file.parent.name) for file in files])
    expected = logits(model, images)
    float32 = timm_sk.export(model, folder / 'float32.onnx', overwrite=True)
    rows = []
    for engine in ENGINES:
        quantized = timm_sk.quantize(model, [calibration], engine=engine)
        path = timm_sk.export(quantized, folder / 'int8.onnx', overwrite=True)
        found = logits(quantized, images)
        rows.append(
            dict(
                model='{architecture}.{tag}'.format(**model.pretrained_cfg),
                engine=engine,
                float32_layers=quantized.metadata['int8']['float32_layers'],
                calibration_images=len(calibration),
                test_images=len(images),
                float32_top1=top1(expected, labels),
                int8_top1=top1(found, labels),
                agreement=top1(found, expected.argmax(1)),
                difference=f'{((found - expected).abs().max() / expected.abs().max()).item():.4f}',
                float32_bytes=float32.stat().st_size,
                int8_bytes=path.stat().st_size,
                processor=describe(torch.device('cpu'))['processor'],
                versions=', '.join(f'{package} {version(package)}' for package in ('torch', *ENGINES)),
                date=describe(torch.device('cpu'))['date'],
            )
        )
    return rows


def logits(model: Any, images: Tensor) -> Tensor:
    """Logits of all images, batch by batch."""
    return torch.cat([model(batch) for batch in images.split(8)])


def top1(found: Tensor, labels: Tensor) -> str:
    """Share of images whose likeliest class is the label, in percent."""
    return f'{100 * (found.argmax(1) == labels).float().mean().item():.2f}'


if __name__ == '__main__':
    main()
