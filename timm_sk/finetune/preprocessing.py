"""Preprocessing and augmentation of images."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..data import create_transform, normalizer
from .config import Config


def build_transforms(config: Config, preprocessing: dict[str, Any]) -> tuple[Any, Any]:
    """Transforms of images to 8-bit pixels [C, H, W]: augmented for training, and for validation."""
    evaluating = create_transform(**preprocessing)
    if config.linear_probe:
        return evaluating, evaluating
    training = create_transform(
        preprocessing['input_size'],
        is_training=True,
        no_aug=config.no_aug,
        crop_padding=0 if config.no_aug else config.crop_padding,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter or None,
        auto_augment=config.aa,
        interpolation=config.train_interpolation or preprocessing['interpolation'],
        mean=preprocessing['mean'],  # fill colour of AutoAugment
    )
    return training, evaluating


def batch_transform(
    config: Config, preprocessing: dict[str, Any], num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """Normalization, random erasing and mixup of a training batch.

    The function takes 8-bit images [B, C, H, W], labels [B] and the epoch. It returns images in float32, and labels
    [B], or class probabilities [B, K] with mixup.
    """
    prepare = normalizer(preprocessing['mean'], preprocessing['std'], device, channels_last=config.channels_last)
    augments = not (config.no_aug or config.linear_probe)
    erase = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device=str(device))
    mix = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
    erases = augments and config.reprob > 0
    mixes = augments and (config.mixup > 0 or config.cutmix > 0)

    def transform(images: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        images, targets = prepare(images), targets.to(device, non_blocking=True)
        if erases:
            images = erase(images)
        if mixes and len(images) % 2 == 0:  # mixup takes pairs
            mix.mixup_enabled = not config.mixup_off_epoch or epoch < config.mixup_off_epoch
            images, targets = mix(images, targets)
        return images, targets

    return transform
