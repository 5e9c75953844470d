"""What trains: the model as the settings want it, its loss, optimizer and schedule."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.data import Mixup, create_transform, resolve_data_config
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..data import normalizer
from ..world import World
from .config import Config
from .learning_rate import resolve_lr

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(kw_only=True)
class Trainee:
    """A model in training, and what changes with it.

    Attributes:
        model: The model itself, which is saved.
        net: The same as it is called: compiled, and in step with other processes.
        frozen: The parts that stay as they are, with their running statistics.
        loss: Of logits [B, K] and labels [B], or the shares [B, K] that mixing gives.
        optimizer: Of the parameters that are not frozen.
        scheduler: Of its learning rate; None for a constant one.
        epochs: How many the schedule has.
        scaler: Of the loss, where gradients are float16.
        ema: The averaged model, if there is one.
        autocast: The context of a forward pass.
    """

    model: nn.Module
    net: nn.Module
    frozen: list[nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    epochs: int
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    autocast: Autocast

    @property
    def judged(self) -> nn.Module:
        """The model that is judged and exported: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The greatest learning rate of now."""
        return max(float(group['lr']) for group in self.optimizer.param_groups)

    def train(self) -> None:
        """Put all but what is frozen into training mode."""
        self.net.train()
        for module in self.frozen:
            module.eval()


def build_model(config: Config, num_classes: int, **overrides: Any) -> nn.Module:
    """The model that the settings name, with the weights that it begins with.

    Args:
        config: The settings.
        num_classes: Of the data.
        **overrides: Arguments of `timm.create_model` that win.

    Raises:
        ValueError: If there is no such model, no such weights, or it lacks what the settings ask for.
    """
    wanted: dict[str, Any] = dict(
        in_chans=config.in_chans,
        global_pool=config.gp,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        drop_block_rate=config.drop_block,
        checkpoint_path=config.initial_checkpoint,
    )
    options = {name: value for name, value in wanted.items() if value is not None} | overrides
    pretrained = options.pop('pretrained', config.pretrained and config.initial_checkpoint is None)
    try:
        return timm.create_model(config.model, pretrained=pretrained, num_classes=num_classes, **options)
    except RuntimeError as error:  # timm's, for names that it does not know and files that do not fit
        raise ValueError(f'{config.model} cannot be built: {" ".join(str(error).split())}') from error
    except TypeError as error:
        raise ValueError(f'{config.model} does not take these settings: {error}') from error


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
    """What makes 8-bit pixels [C, H, W] of a picture: for training, augmented, and for validation."""
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
    """What makes a training batch of 8-bit pictures [B, C, H, W] and labels [B]: normalised, erased, mixed.

    It is called with the epoch too, and gives pictures in float32 and labels [B], or shares [B, K] where it mixes.
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
        if mixes and len(images) % 2 == 0:  # pictures are mixed in pairs
            mix.mixup_enabled = not config.mixup_off_epoch or epoch < config.mixup_off_epoch
            images, targets = mix(images, targets)
        return images, targets

    return transform


def build_trainee(config: Config, model: nn.Module, world: World, updates_per_epoch: int) -> Trainee:
    """Put a model into training.

    Args:
        config: The settings.
        model: As `build_model` gives it.
        world: The processes.
        updates_per_epoch: Steps of the optimizer in an epoch.

    Raises:
        ValueError: If the settings ask for what the model, the device or timm's factories lack.
    """
    if config.sync_bn:
        if world.device.type != 'cuda':
            raise ValueError(f'--sync-bn needs CUDA: torch has no SyncBatchNorm on {world.device.type}. Leave it out.')
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    frozen = freeze(model, 'head' if config.linear_probe else config.freeze, all_norms=config.freeze_bn)
    ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=True) if config.model_ema else None
    lr = resolve_lr(config, config.batch_size * world.size * config.grad_accum_steps)
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=config.opt,
            lr=lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
        )
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            decay_epochs=config.decay_epochs,
            decay_milestones=list(config.decay_milestones),
            cooldown_epochs=config.cooldown_epochs,
            patience_epochs=config.patience_epochs,
            decay_rate=config.decay_rate,
            min_lr=config.min_lr,
            warmup_lr=min(config.warmup_lr, lr),
            warmup_epochs=min(config.warmup_epochs, config.epochs / 2),
            plateau_mode='min' if config.eval_metric == 'loss' else 'max',
            step_on_epochs=not config.sched_on_updates or config.sched == 'plateau',
            updates_per_epoch=updates_per_epoch,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise ValueError(f'opt {config.opt} with sched {config.sched} cannot be made: {error}') from error
    net: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    if world.size > 1:
        on = [world.device.index] if world.device.type == 'cuda' else None
        net = DistributedDataParallel(net, device_ids=on, find_unused_parameters=False)
    in_float16 = config.amp and config.amp_dtype == 'float16'
    return Trainee(
        model=model,
        net=net,
        frozen=frozen,
        loss=_loss(config),
        optimizer=optimizer,
        scheduler=scheduler,
        epochs=epochs,
        scaler=torch.amp.GradScaler(world.device.type, enabled=in_float16),
        ema=ema,
        autocast=autocast_of(config, world.device),
    )


def autocast_of(config: Config, device: torch.device) -> Autocast:
    """The context that a model runs in.

    Raises:
        ValueError: If it is float16's and the device no GPU.
    """
    if not config.amp:
        return nullcontext
    if config.amp_dtype == 'float16' and device.type != 'cuda':
        raise ValueError('amp_dtype float16 needs CUDA: take bfloat16, which the CPU has too.')
    return partial(torch.autocast, device.type, getattr(torch, config.amp_dtype))


def freeze(model: nn.Module, start: str | None, *, all_norms: bool = False) -> list[nn.Module]:
    """Freeze what lies below a part of a model, and say what has to stay in eval mode.

    Args:
        model: A model of timm; its children are taken in the order of the forward pass.
        start: The first part to train: a child's name, or 'head' for the classifier; None freezes nothing.
        all_norms: Keep the running statistics of every BatchNorm, frozen or not.

    Raises:
        ValueError: If it has no such part.
    """
    frozen: list[nn.Module] = []
    if start is not None:
        names = [name for name, _ in model.named_children()]
        head = classifier_name(model)
        first = head if start == 'head' else start
        if first not in names:
            raise ValueError(f'freeze must be "head" or one of {", ".join(names)}, got {start!r}.')
        frozen = [child for name, child in model.named_children() if names.index(name) < names.index(first)]
        for module in frozen:
            module.requires_grad_(False)
    if all_norms:
        frozen += [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return frozen


def classifier_name(model: Any) -> str:
    """The name of the child that holds a model's classifier."""
    classifier = model.pretrained_cfg['classifier']
    return str(classifier if isinstance(classifier, str) else classifier[0]).partition('.')[0]


def _loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    if config.bce_loss:
        return BinaryCrossEntropy(smoothing=config.smoothing)
    smoothed = nn.CrossEntropyLoss(label_smoothing=config.smoothing)
    plain = nn.CrossEntropyLoss()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return smoothed(logits, targets) if targets.ndim == 1 else plain(logits, targets)  # shares are smooth already

    return loss
