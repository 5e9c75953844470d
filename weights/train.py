"""Train a bundled checkpoint from scratch and write its folder.

    python weights/train.py sknet_atto.digits

The last epoch's weights are the result: nothing is chosen by the held-out part, which is looked at once, at the end.
Settings are chosen by `--folds 5`, which cross-validates inside the training part and writes nothing.
"""

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

import digits
import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.progress import track
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.pretrained import save_safetensors, sha256_of

ROOT = Path(__file__).resolve().parent
HELD_OUT_FILE = ROOT.parent / 'tests' / 'data' / 'digits_heldout.safetensors'
GOLDEN_INPUTS = 8


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the learning rate falls as a cosine after a linear warm-up."""

    epochs: int = 120
    warmup_epochs: int = 3
    batch_size: int = 64
    opt: str = 'adamw'
    lr: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    rotation: float = 24.0  # degrees, either way
    scaling: float = 0.24  # share of the size, either way
    shear: float = 0.32
    shift: float = 0.08  # share of the width, either way
    seed: int = 0


RECIPES = {'sknet_atto.digits': Recipe()}


def augment(x: Tensor, recipe: Recipe) -> Tensor:
    """A random affine map of each picture [B, C, H, W], the border's grey continued outside."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(len(x), *shape) - 1) * limit

    angle, scale, shear = uniform(math.radians(recipe.rotation)), 1 + uniform(recipe.scaling), uniform(recipe.shear)
    shift = uniform(2 * recipe.shift, 2)  # the sampling grid is 2 wide
    row_x = torch.stack([scale * angle.cos(), shear - scale * angle.sin(), shift[:, 0]], dim=1)
    row_y = torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode='border', align_corners=False)


def train(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Train in place on pictures [N, C, H, W] and labels [N]."""
    optimizer = create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = len(images) // recipe.batch_size
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * steps,
        warmup_t=recipe.warmup_epochs * steps,
        warmup_lr_init=recipe.lr / 100,
        t_in_epochs=False,
    )
    model.train()
    for epoch in track(range(recipe.epochs), description='Training'):
        batches = torch.randperm(len(images))[: steps * recipe.batch_size].view(steps, -1)
        for step, batch in enumerate(batches):
            scheduler.step_update(epoch * steps + step)
            logits = model(augment(images[batch], recipe))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100 * float((model(images).argmax(dim=1) == labels).double().mean())


def drop_model_args(config_file: Path) -> None:
    """Drop what timm records of the call: the architecture implies it, and transformers 5 fails on `num_classes`."""
    config = json.loads(config_file.read_text())
    del config['model_args']
    config_file.write_text(json.dumps(config, indent=2) + '\n')


def export(name: str, model: nn.Module, pictures: list[Image.Image], inputs: Tensor, card: str) -> Path:
    """Write `weights/<name>/`: weights, timm's config, card, goldens and one example picture for each class.

    Args:
        name: `arch.tag`.
        model: In eval mode.
        pictures: One per class, in the order of the classes.
        inputs: Preprocessed pictures for the goldens.
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
    with torch.inference_mode():
        goldens = dict(inputs=inputs, logits=model(inputs))
    save_safetensors(goldens, folder / 'golden.safetensors', metadata=dict(format='pt', source=source))
    for label, picture in zip(label_names, pictures, strict=True):
        picture.save(examples / f'{label}.png')
    (folder / 'README.md').write_text(card)
    return folder


def train_new(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """Train a checkpoint's architecture from its recipe's seed."""
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    model = timm.create_model(name)
    train(model, images, labels, recipe)
    return model


def cross_validate(name: str, images: Tensor, labels: Tensor, folds: int) -> None:
    """Print how many pictures [N, C, H, W] are classified wrongly by models that were trained on the other folds."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(RECIPES[name].seed))
    wrong = 0
    for fold in range(folds):
        outside = torch.arange(len(images)) % folds != fold
        model = train_new(name, images[order[outside]], labels[order[outside]])
        inside = order[~outside]
        wrong += round(len(inside) * (1 - accuracy(model, images[inside], labels[inside]) / 100))
    print(
        f'{folds}-fold cross-validation: {wrong} of {len(images)} wrong, top-1 {100 * (1 - wrong / len(images)):.2f} %'
    )


def main(
    name: Annotated[str, typer.Argument(help='The checkpoint, as arch.tag.')],
    folds: Annotated[int, typer.Option(help='Cross-validate with so many folds instead.')] = 0,
) -> None:
    """Train a bundled checkpoint from scratch and write its folder."""
    if name not in RECIPES:
        raise typer.BadParameter(f'no recipe for {name}; there are: {", ".join(RECIPES)}')
    transform = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))

    pixels, targets = digits.load()
    pictures = [Image.fromarray(picture) for picture in pixels]
    images = torch.stack([transform(picture.convert('RGB')) for picture in pictures])
    labels = torch.from_numpy(targets)
    held_out = digits.held_out()
    training = np.setdiff1d(np.arange(len(targets)), held_out)

    if folds:
        cross_validate(name, images[training], labels[training], folds)
        return
    model = train_new(name, images[training], labels[training])
    top1 = accuracy(model, images[held_out], labels[held_out])

    save_safetensors(
        dict(indices=torch.from_numpy(held_out), images=torch.from_numpy(pixels[held_out]), labels=labels[held_out]),
        HELD_OUT_FILE,
    )
    first_of_class = [int(held_out[np.argmax(targets[held_out] == target)]) for target in range(10)]
    settings = '\n'.join(f'| {field} | {value} |' for field, value in vars(RECIPES[name]).items())
    card = Template((ROOT / f'{name}.card.md').read_text()).substitute(
        top1=f'{top1:.2f}',
        wrong=round((100 - top1) / 100 * len(held_out)),
        params=f'{sum(p.numel() for p in model.parameters()):,}',
        settings=settings,
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
    )
    folder = export(name, model, [pictures[i] for i in first_of_class], images[held_out[:GOLDEN_INPUTS]], card)
    print(f'held-out top-1 {top1:.2f} %: {folder}')
    print('For its row in timm_sk/checkpoints.py:')
    print(f"    sha256='{sha256_of(folder / 'model.safetensors')}', top1={top1:.2f}")


if __name__ == '__main__':
    typer.run(main)
