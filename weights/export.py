"""A trained model as a folder: weights, config, goldens, recipe, card and example images."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import timm
import torch
from recipe import LabelledImages, Recipe
from torch import nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.publishing.hub_folder import CARD, GOLDEN, write_golden, write_model, write_recipe

ROOT = Path(__file__).resolve().parent
GOLDEN_INPUTS = 8


def git_commit() -> str:
    """The commit that is checked out."""
    return subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=ROOT, text=True).strip()


def write_card(name: str, model: nn.Module, settings: Mapping[str, Any], **facts: object) -> str:
    """Fill the template `weights/<name>.card.md`."""
    return Template((ROOT / f'{name}.card.md').read_text()).substitute(
        params=f'{sum(p.numel() for p in model.parameters()):,}',
        settings='\n'.join(f'| {field} | {value} |' for field, value in settings.items()),
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        **facts,
    )


def export(name: str, model: nn.Module, recipe: Recipe, held_out: LabelledImages, card: str) -> Path:
    """Write `weights/<name>/`: a model in eval mode, its recipe and its card.

    The first held-out images become goldens, the first of each class becomes an example.
    """
    folder = ROOT / name
    examples = folder / 'examples'
    examples.mkdir(parents=True, exist_ok=True)
    row = CHECKPOINTS[name]
    source = dict(source=f'weights/train.py {name}')
    write_model(folder, model, row, metadata=dict(source, commit=git_commit()))
    write_golden(folder / GOLDEN, model, held_out.images[:GOLDEN_INPUTS], metadata=source)
    write_recipe(folder, vars(recipe))
    for label, label_name in enumerate(row.label_names or ()):
        first = int((held_out.labels == label).nonzero()[0])
        held_out.originals[first].save(examples / f'{label_name}.png')
    (folder / CARD).write_text(card)
    return folder
