"""A trained model as a folder: weights, config, goldens, recipe, card and example images."""

import subprocess
from pathlib import Path
from string import Template

import timm
import torch
from recipe import LabelledImages, Recipe
from torch import nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.publishing.hub_folder import CARD, GOLDEN, write_golden, write_model, write_recipe

ROOT = Path(__file__).resolve().parent
GOLDEN_INPUTS = 8


def write_card(name: str, model: nn.Module, recipe: Recipe, **facts: str) -> str:
    """Fill the template `weights/<name>.card.md`."""
    return Template((ROOT / f'{name}.card.md').read_text()).substitute(
        params=f'{sum(p.numel() for p in model.parameters()):,}',
        settings='\n'.join(f'| {field} | {value} |' for field, value in vars(recipe).items()),
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        **facts,
    )


def export(name: str, model: nn.Module, recipe: Recipe, held_out: LabelledImages, card: str) -> Path:
    """Write `weights/<name>/`.

    Args:
        name: `arch.tag`.
        model: In eval mode.
        recipe: Its settings.
        held_out: The first few become goldens, the first of each class becomes an example.
        card: Text of the folder's README.md.
    """
    folder = ROOT / name
    examples = folder / 'examples'
    examples.mkdir(parents=True, exist_ok=True)
    row = CHECKPOINTS[name]
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, check=True, capture_output=True, text=True)
    source = dict(source=f'weights/train.py {name}')
    write_model(folder, model, row, metadata=dict(source, commit=commit.stdout.strip()))
    write_golden(folder / GOLDEN, model, held_out.images[:GOLDEN_INPUTS], metadata=source)
    write_recipe(folder, vars(recipe))
    for label, label_name in enumerate(row.label_names or ()):
        first = int((held_out.labels == label).nonzero()[0])
        held_out.originals[first].save(examples / f'{label_name}.png')
    (folder / CARD).write_text(card)
    return folder
