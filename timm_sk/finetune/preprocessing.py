"""What becomes of images before a model sees them."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup, create_transform, resolve_data_config
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from ..data import normalizer
from .config import Config


def data_config_of(config: Config, model: nn.Module) -> dict[str, Any]:
    """The model's preprocessing, with the settings' changes, as `timm.data.resolve_data_config` gives it."""
    changes: dict[str, Any] = {}
    if config.in_chans is not None:
        changes['in_chans'] = config.in_chans
    found: dict[str, Any] = resolve_data_config(changes, model=model)
    channels = config.in_chans or found['input_size'][0]
    size = (config.img_size,) * 2 if config.img_size else tuple(found['input_size'][1:])
    for name in ('mean', 'std'):
        if len(found[name]) != channels:
            found[name] = (sum(found[name]) / len(found[name]),) * channels
    return found | dict(input_size=(channels, *size))


def transforms_of(config: Config, data_config: dict[str, Any]) -> tuple[Any, Any]:
    """What makes 8-bit pixels [C, H, W] of an image: for training, augmented, and for validation."""
    judging = create_transform(
        data_config['input_size'],
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        crop_mode=data_config.get('crop_mode'),
        use_prefetcher=True,
    )
    if config.linear_probe:
        return judging, judging
    training = create_transform(
        data_config['input_size'],
        is_training=True,
        no_aug=config.no_aug,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
        interpolation=config.train_interpolation or data_config['interpolation'],
        mean=data_config['mean'],  # which auto-augment fills with
        use_prefetcher=True,
    )
    return training, judging


def batch_transform(
    config: Config, data_config: dict[str, Any], num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """What makes a training batch of 8-bit images [B, C, H, W] and labels [B]: normalised, erased, mixed.

    It is called with the epoch too, and gives images in float32 and labels [B], or shares [B, K] where it mixes.
    """
    prepare = normalizer(data_config['mean'], data_config['std'], device, channels_last=config.channels_last)
    augments = not (config.no_aug or config.linear_probe)
    erase = (
        RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device=str(device))
        if augments and config.reprob > 0
        else None
    )
    mix = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
    mixes = augments and (config.mixup > 0 or config.cutmix > 0)

    def transform(images: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        images, targets = prepare(images), targets.to(device, non_blocking=True)
        if erase is not None:
            images = erase(images)
        if mixes and len(images) % 2 == 0:  # images are mixed in pairs
            mix.mixup_enabled = not config.mixup_off_epoch or epoch < config.mixup_off_epoch
            images, targets = mix(images, targets)
        return images, targets

    return transform
