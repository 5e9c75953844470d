"""scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, with a fixed held-out fifth."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from recipe import LabelledImages, Recipe, Task
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from timm_sk.pretrained import save_safetensors

SPLIT_FILE = Path(__file__).with_name('digits_split.json')
HELD_OUT_FILE = Path(__file__).resolve().parent.parent / 'tests' / 'data' / 'digits_heldout.safetensors'
FOLDS = 5
_LEVELS = 16  # the data set counts inked sub-pixels, 0 to 16


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images [1797, 8, 8] in 8-bit grey, white on black, and their labels [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * (255 / _LEVELS)).astype(np.uint8), digits.target.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class DigitsRecipe(Recipe):
    """The settings, and the ranges of the random affine augmentation."""

    epochs: int = 120
    warmup_epochs: int = 3
    batch_size: int = 64
    lr: float = 3e-3
    rotation: float = 24.0  # degrees, either way
    scaling: float = 0.24  # share of the size, either way
    shear: float = 0.32
    shift: float = 0.08  # share of the width, either way


def augment(x: Tensor, recipe: DigitsRecipe) -> Tensor:
    """Random affine transform of each image [B, C, H, W], with border padding."""

    def uniform(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(len(x), *shape) - 1) * limit

    angle, scale, shear = uniform(math.radians(recipe.rotation)), 1 + uniform(recipe.scaling), uniform(recipe.shear)
    shift = uniform(2 * recipe.shift, 2)  # the sampling grid is 2 wide
    row_x = torch.stack([scale * angle.cos(), shear - scale * angle.sin(), shift[:, 0]], dim=1)
    row_y = torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode='border', align_corners=False)


@dataclass(frozen=True)
class AugmentedImages:
    """A fixed set of images [N, C, H, W] with labels [N], shuffled and augmented anew in every epoch."""

    images: Tensor
    labels: Tensor
    recipe: DigitsRecipe

    @property
    def steps(self) -> int:
        return len(self.images) // self.recipe.batch_size

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images))[: self.steps * self.recipe.batch_size]
        for batch in order.view(self.steps, -1):
            yield augment(self.images[batch], self.recipe), self.labels[batch]


class Digits(Task):
    """Reading digits; the settings are chosen by cross-validation inside the training part."""

    recipe = DigitsRecipe()

    def __init__(self) -> None:
        cfg = timm.get_pretrained_cfg('sknet_atto.digits').to_dict()
        transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
        self.pixels, targets = load()
        self.originals = [Image.fromarray(pixels) for pixels in self.pixels]
        self.images = torch.stack([transform(image.convert('RGB')) for image in self.originals])
        self.labels = torch.from_numpy(targets)
        self.held_out_indices = torch.tensor(json.loads(SPLIT_FILE.read_text())['held_out'])  # ascending
        trained = torch.ones(len(targets), dtype=torch.bool)
        trained[self.held_out_indices] = False
        self.training_indices = trained.nonzero().flatten()

    def _subset(self, indices: Tensor) -> AugmentedImages:
        return AugmentedImages(self.images[indices], self.labels[indices], self.recipe)

    def training_set(self) -> AugmentedImages:
        return self._subset(self.training_indices)

    def held_out(self) -> LabelledImages:
        indices = self.held_out_indices
        return LabelledImages(
            images=self.images[indices],
            labels=self.labels[indices],
            originals=[self.originals[index] for index in indices.tolist()],
        )

    def validation(self) -> Iterator[tuple[AugmentedImages, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        order = self.training_indices[torch.randperm(len(self.training_indices), generator=generator)]
        for fold in range(FOLDS):
            outside = torch.arange(len(order)) % FOLDS != fold
            inside = order[~outside]
            yield self._subset(order[outside]), self.images[inside], self.labels[inside]

    def export_for_tests(self) -> None:
        indices = self.held_out_indices
        images = torch.from_numpy(self.pixels)[indices]
        save_safetensors(dict(indices=indices, images=images, labels=self.labels[indices]), HELD_OUT_FILE)
