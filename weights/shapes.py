"""Single shapes on textured clutter, drawn on the fly by `timm_sk.shapes`: no image is used twice."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import selection
import torch
from numpy.typing import NDArray
from PIL import Image
from recipe import LabelledImages, Recipe, Task
from torch import Tensor, nn

from timm_sk.checkpoints import CHECKPOINTS
from timm_sk.data.shapes import TEST_COUNT, TEST_SEED, draw

VALIDATION_SEED, VALIDATION_COUNT = 10_000, 10_000  # epochs take the seeds below


@dataclass(frozen=True, kw_only=True)
class ShapesRecipe(Recipe):
    """The settings, and the number of new images per epoch."""

    epochs: int = 24
    warmup_epochs: int = 1
    batch_size: int = 128
    lr: float = 4e-3
    epoch_pictures: int = 12_800


def preprocess(pixels: NDArray[np.uint8]) -> Tensor:
    """Preprocess images [N, H, W, 3] of the right size as timm's transform does, to [N, 3, H, W]."""
    row = CHECKPOINTS['sknet_atto.shapes']
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div(255)
    mean, std = torch.tensor(row.mean)[:, None, None], torch.tensor(row.std)[:, None, None]
    return images.sub(mean).div(std)


@dataclass(frozen=True)
class NewImages:
    """Synthetic images; the seed of epoch k is k above the first one."""

    steps: int
    batch_size: int
    first_seed: int = 0

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = draw(self.steps * self.batch_size, seed=self.first_seed + epoch)
        size = self.batch_size
        yield from zip(preprocess(pixels).split(size), torch.from_numpy(labels).split(size), strict=True)


class Shapes(Task):
    """Classification of shapes; validation images come from a seed of their own."""

    recipe = ShapesRecipe()
    # a second thread gains next to nothing on maps this small, and would change the last digits
    threads = 1

    def training_set(self) -> NewImages:
        return NewImages(self.recipe.epoch_pictures // self.recipe.batch_size, self.recipe.batch_size)

    def held_out(self) -> LabelledImages:
        pixels, labels = draw(TEST_COUNT, seed=TEST_SEED)
        return LabelledImages(
            images=preprocess(pixels),
            labels=torch.from_numpy(labels),
            originals=[Image.fromarray(image) for image in pixels],
        )

    def validation(self) -> Iterator[tuple[NewImages, Tensor, Tensor]]:
        pixels, labels = draw(VALIDATION_COUNT, seed=VALIDATION_SEED)
        yield self.training_set(), preprocess(pixels), torch.from_numpy(labels)

    def facts(self, model: nn.Module) -> dict[str, str]:
        images = {
            scale: preprocess(draw(selection.IMAGES, seed=TEST_SEED, scale=scale)[0]) for scale in selection.SCALES
        }
        measured = selection.measure(model, images)
        return dict(
            epochs=str(self.recipe.epochs),
            epoch_pictures=f'{self.recipe.epoch_pictures:,}',
            validation_seed=str(VALIDATION_SEED),
            validation_count=f'{VALIDATION_COUNT:,}',
            test_seed=str(TEST_SEED),
            test_count=f'{TEST_COUNT:,}',
            scale_pictures=str(selection.IMAGES),
            scale_table=selection.table(measured),
            scale_verdict=textwrap.fill(selection.verdict(measured), 120),
        )
