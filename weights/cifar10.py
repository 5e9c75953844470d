r"""Write the folder of `sknet17_1x32d.cifar10` from two finished runs of `timm-sk finetune`.

    timm-sk finetune cifar10/train.tar --config cifar10 --val-fraction 0.04 --amp --compile --workers 1 \
        --tag cifar10 --licence apache-2.0 --output runs/cifar10
    timm-sk finetune cifar10/train.tar --config cifar10 --model local-dir:runs/cifar10/export --pretrained \
        --epochs 8 --lr 0.05 --warmup-epochs 0 --aa '' --reprob 0 --val-fraction 0.04 --amp --compile --workers 1 \
        --tag cifar10 --licence apache-2.0 --output runs/refined
    python weights/cifar10.py runs/cifar10 runs/refined cifar10/test.tar

Convolutions and the classifier are stored in float16, norms in float32; all are loaded as float32. The accuracy in the
card is that of the rounded weights on the test images.
"""

import csv
import statistics
from pathlib import Path
from typing import Annotated

import timm
import typer
import yaml
from export import ROOT, git_commit, write_card
from torch import Tensor, nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.evaluation.metrics import Evaluation
from timm_sk.evaluation.validation import validate
from timm_sk.evaluation.validation_config import ValidationConfig
from timm_sk.pretrained import save_safetensors, sha256_of
from timm_sk.publishing.hub_folder import (
    CARD,
    GOLDEN,
    SETTINGS,
    WEIGHTS,
    golden_inputs,
    recipe_settings,
    write_golden,
    write_model,
    write_recipe,
)

NAME = 'sknet17_1x32d.cifar10'
HALVED = (nn.Conv2d, nn.Linear)


def rounded(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with convolutions and linear layers in float16, in its order."""
    halved = {
        f'{path}.{key}'
        for path, module in model.named_modules()
        if isinstance(module, HALVED)
        for key, _ in module.named_parameters(recurse=False)
    }
    return {key: tensor.half() if key in halved else tensor for key, tensor in model.state_dict().items()}


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, in percent."""
    share, square = correct / total, z * z / total
    centre, spread = share + square / 2, z * (share * (1 - share) / total + square / (4 * total)) ** 0.5
    return 100 * (centre - spread) / (1 + square), 100 * (centre + spread) / (1 + square)


def confusion_table(found: Evaluation, names: tuple[str, ...]) -> str:
    """The confusion matrix as Markdown: a row for each true class."""
    lines = [f'| | {" | ".join(names)} |', f'|---|{"---|" * len(names)}']
    for name, counts in zip(names, found.confusion.tolist(), strict=True):
        lines.append(f'| **{name}** | {" | ".join(map(str, counts))} |')
    return '\n'.join(lines)


def read_history(path: Path) -> list[dict[str, float]]:
    """The figures of a run by epoch."""
    with path.open(newline='') as file:
        return [{key: float(value) for key, value in epoch.items()} for epoch in csv.DictReader(file)]


def main(
    first: Annotated[Path, typer.Argument(help='Folder of the first run.')],
    refined: Annotated[Path, typer.Argument(help='Folder of the second run, whose weights are taken.')],
    test_images: Annotated[Path, typer.Argument(help='Folder or tar of the test images.')],
) -> None:
    """Write the folder of sknet17_1x32d.cifar10 from two finished runs."""
    row, folder = CHECKPOINTS[NAME], ROOT / NAME
    model = timm.create_model(f'local-dir:{refined / "export"}', pretrained=True).eval()
    weights = rounded(model)
    model.load_state_dict(weights)  # copies into float32
    folder.mkdir(exist_ok=True)
    source = dict(source='weights/cifar10.py', commit=git_commit())
    write_model(folder, model, row, metadata=source)  # for its config; the weights are replaced
    save_safetensors(weights, folder / WEIGHTS, metadata=dict(format='pt', **source))
    write_golden(folder / GOLDEN, model, golden_inputs(row.input_size), metadata=source)
    settings = yaml.safe_load((first / 'export' / SETTINGS).read_text())
    recipe = recipe_settings(settings)
    write_recipe(folder, recipe)
    found = validate(f'local-dir:{folder}', ValidationConfig(data=str(test_images), workers=0)).evaluation
    before, after = (read_history(run / 'metrics.csv') for run in (first, refined))
    seconds = statistics.median(epoch['seconds'] for epoch in before + after)
    low, high = wilson_interval(found.top1 / 100 * found.count, found.count)
    card = write_card(
        NAME,
        model,
        recipe,
        top1=f'{found.top1:.2f}',
        interval=f'{low:.2f} to {high:.2f}',
        wrong=f'{round((1 - found.top1 / 100) * found.count):,}',
        ece=f'{found.ece:.3f}',
        loss=f'{found.loss:.3f}',
        confusion=confusion_table(found, row.label_names or ()),
        validation=f'{max(epoch["val_top1"] for epoch in after):.2f}',
        epochs=len(before),
        more_epochs=len(after),
        seconds=f'{seconds:.0f}',
        minutes=f'{len(before + after) * seconds / 60:.0f}',
        seed=settings['seed'],
    )
    (folder / CARD).write_text(card)
    print(f'top-1 {found.top1:.2f} % ({low:.2f} to {high:.2f}): {folder}')
    print('For its row in timm_sk/checkpoints/small.py:')
    path = folder / WEIGHTS
    print(f"    sha256='{sha256_of(path)}', size={path.stat().st_size}, top1={found.top1:.2f}")


if __name__ == '__main__':
    typer.run(main)
