"""A model in training, with its loss, optimizer and schedule."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import DistributedContext
from .config import Config
from .model import freeze

Autocast = Callable[[], AbstractContextManager[Any]]
DEFAULT_LR = 1e-3  # AdamW's, which is the default optimizer
_SCALED_BY_ROOT = ('ada', 'lamb')  # parts of the names of optimizers, as timm's train.py has them


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


def build_trainee(config: Config, model: nn.Module, context: DistributedContext, updates_per_epoch: int) -> Trainee:
    """Put a model into training.

    Args:
        config: The settings.
        model: As `build_model` gives it.
        context: The processes.
        updates_per_epoch: Steps of the optimizer in an epoch.

    Raises:
        ValueError: If the settings ask for what the model, the device or timm's factories lack.
    """
    if config.sync_bn:
        if context.device.type != 'cuda':
            raise ValueError(
                f'--sync-bn needs CUDA: torch has no SyncBatchNorm on {context.device.type}. Leave it out.'
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(context.device, memory_format=memory_format)  # type: ignore[call-overload]
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    frozen = freeze(model, 'head' if config.linear_probe else config.freeze, all_norms=config.freeze_bn)
    ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=True) if config.model_ema else None
    lr = resolve_lr(config, images_per_step(config, context))
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
    if context.size > 1:
        on = [context.device.index] if context.device.type == 'cuda' else None
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
        scaler=torch.amp.GradScaler(context.device.type, enabled=in_float16),
        ema=ema,
        autocast=autocast_of(config, context.device),
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


def _loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    if config.bce_loss:
        return BinaryCrossEntropy(smoothing=config.smoothing)
    smoothed = nn.CrossEntropyLoss(label_smoothing=config.smoothing)
    plain = nn.CrossEntropyLoss()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return smoothed(logits, targets) if targets.ndim == 1 else plain(logits, targets)  # shares are smooth already

    return loss


def resolve_lr(config: Config, global_batch: int) -> float:
    """The learning rate at its highest, as timm's `train.py` resolves it.

    `lr` where it is given. Else `lr_base` times the number of images in a step over `lr_base_size`, or times the
    root of that ratio. 0.001 where neither is given.

    Args:
        config: The settings.
        global_batch: ImageDataset that make one step of the optimizer: a batch, times the processes, times the batches
            whose gradients are accumulated.

    Raises:
        ValueError: If no image makes a step.
    """
    if global_batch < 1:
        raise ValueError(f'global_batch must be at least 1, got {global_batch}.')
    if config.lr is not None:
        return config.lr
    if config.lr_base is None:
        return DEFAULT_LR
    ratio = global_batch / config.lr_base_size
    by_root = any(part in config.opt.lower() for part in _SCALED_BY_ROOT)
    scale = config.lr_base_scale or ('sqrt' if by_root else 'linear')
    return config.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio)


def images_per_step(config: Config, context: DistributedContext) -> int:
    """Images that make one step of the optimizer, in all processes together."""
    return config.batch_size * context.size * config.grad_accum_steps
