"""A trained model as a folder: weights, timm's config, card, goldens and example pictures."""

import json
import subprocess
from pathlib import Path
from string import Template

import timm
import torch
from recipe import LabelledPictures, Recipe
from timm.models import save_for_hf
from torch import nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.pretrained import save_safetensors

ROOT = Path(__file__).resolve().parent
GOLDEN_INPUTS = 8


def drop_model_args(config_file: Path) -> None:
    """Drop what timm records of the call: the architecture implies it, and transformers 5 fails on `num_classes`."""
    config = json.loads(config_file.read_text())
    del config['model_args']
    config_file.write_text(json.dumps(config, indent=2) + '\n')


def write_card(name: str, model: nn.Module, recipe: Recipe, **facts: str) -> str:
    """Fill the template `weights/<name>.card.md`."""
    return Template((ROOT / f'{name}.card.md').read_text()).substitute(
        params=f'{sum(p.numel() for p in model.parameters()):,}',
        settings='\n'.join(f'| {field} | {value} |' for field, value in vars(recipe).items()),
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        **facts,
    )


def export(name: str, model: nn.Module, held_out: LabelledPictures, card: str) -> Path:
    """Write `weights/<name>/`.

    Args:
        name: `arch.tag`.
        model: In eval mode.
        held_out: The first few become goldens, the first of each class becomes an example.
        card: Text of the folder's README.md.
    """
    folder = ROOT / name
    examples = folder / 'examples'
    examples.mkdir(parents=True, exist_ok=True)
    label_names = list(CHECKPOINTS[name].label_names or ())
    # for its config.json; the weights are written again in the order of the state dict
    save_for_hf(model, str(folder), safe_serialization=True, model_config=dict(label_names=label_names))
    drop_model_args(folder / 'config.json')
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, check=True, capture_output=True, text=True)
    source = f'weights/train.py {name}'
    save_safetensors(
        model.state_dict(),
        folder / 'model.safetensors',
        metadata=dict(format='pt', source=source, commit=commit.stdout.strip()),
    )
    inputs = held_out.images[:GOLDEN_INPUTS]
    with torch.inference_mode():
        goldens = dict(inputs=inputs, logits=model(inputs))
    save_safetensors(goldens, folder / 'golden.safetensors', metadata=dict(format='pt', source=source))
    for label, label_name in enumerate(label_names):
        first = int((held_out.labels == label).nonzero()[0])
        held_out.pictures[first].save(examples / f'{label_name}.png')
    (folder / 'README.md').write_text(card)
    return folder
