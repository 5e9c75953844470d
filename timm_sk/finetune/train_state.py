"""The state of a run: model, loss, optimizer, schedule, averaged weights, and how far it is."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from timm.optim import Lookahead, create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import DistributedContext
from ..errors import nearest
from .config import Config
from .model import freeze
from .saved_values import require_like

Autocast = Callable[[], AbstractContextManager[Any]]
DEFAULT_LR = 1e-3  # AdamW's, which is the default optimizer
_SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'constant', 'wsd', 'rsqrt', 'none')
# Metrics of a finished epoch, in the history of a run.
_EPOCH_METRICS = (
    *('epoch', 'train_loss', 'train_top1', 'images_per_s', 'wait_share', 'seconds'),
    *('val_loss', 'val_top1', 'val_top5', 'lr'),
)
_LOOKAHEAD = 'lookahead_slow_buff'  # averaged weights, which timm's Lookahead adds to the state after some steps
_SQRT_SCALED = ('ada', 'lamb')  # parts of the names of optimizers, as in timm's train.py


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    epoch: int = 0  # number of finished epochs
    images: int = 0  # of the current epoch, that all processes have trained on
    updates: int = 0  # number of optimizer steps
    # loss times images, correct predictions and images of this process and epoch, on the model's device
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    seconds: float = 0.0  # of the epoch so far, in this process
    waiting: float = 0.0  # seconds of it that were spent waiting for images
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of each finished epoch
    best: dict[str, float] | None = None  # metrics of the best epoch
    bad: list[str] = field(default_factory=list)  # images that could not be read, with the reasons
    reported: list[str] = field(default_factory=list)  # those of them that were logged

    def reset_sums(self) -> None:
        """Set all sums to zero."""
        self.sums, self.seconds, self.waiting = torch.zeros_like(self.sums), 0.0, 0.0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: mean loss, logits [B, K] and labels [B]; does not synchronize with a GPU."""
        correct = (logits.argmax(dim=1) == targets.to(logits.device, non_blocking=True)).sum()
        count = len(logits)
        self.sums = self.sums.to(loss.device)
        self.sums += torch.stack([loss.double() * count, correct.double(), torch.full_like(correct, count).double()])

    def batch_metrics(self) -> dict[str, float]:
        """Loss, accuracy in percent and speed of the epoch so far in this process."""
        loss, correct, count = self.sums.tolist()
        values = dict(loss=loss / count, top1=100 * correct / count)
        return values | dict(images_per_s=count / self.seconds) if self.seconds else values

    def epoch_metrics(self, context: DistributedContext) -> dict[str, float]:
        """Loss, accuracy in percent, speed and share of waiting of the epoch so far in all processes."""
        loss, correct, count, seconds, waiting = self._totals(context).tolist()
        count, seconds = max(count, 1.0), max(seconds, 1e-9)
        return dict(
            train_loss=loss / count,
            train_top1=100 * correct / count,
            images_per_s=context.size * count / seconds,
            wait_share=waiting / seconds,
            seconds=seconds / context.size,
        )

    def state_dict(self, context: DistributedContext) -> dict[str, Any]:
        """The progress of all processes; each has to call this."""
        totals = self._totals(context)
        bad = sorted({line for lines in context.all_gather(self.bad) for line in lines})
        seconds, waiting = totals[3:].tolist()
        return asdict(self) | dict(sums=totals[:3], seconds=seconds, waiting=waiting, bad=bad)

    @classmethod
    def from_dict(cls, saved: Any, images_per_epoch: int) -> 'Progress':
        """The progress that `state_dict` gave, as read from a file; nothing in it is trusted.

        A step takes at least one image, however many processes the run had.

        Raises:
            ValueError: If an entry is missing or invalid.
        """
        entries = saved if isinstance(saved, dict) else {}
        lengths = {key: len(value) for key, value in entries.items() if isinstance(value, list)}
        texts: dict[str, Any] = {key: [''] * lengths.get(key, 0) for key in ('bad', 'reported')}
        row: dict[str, float] = dict.fromkeys(_EPOCH_METRICS, 0.0) | dict(epoch=0, val_loss=math.nan)
        epochs = lengths.get('history', 0)
        require_like(saved, asdict(cls(history=[row] * epochs, best=row if epochs else None, **texts)), 'progress')
        images, updates = saved['images'], saved['updates']
        is_possible = 0 <= images < images_per_epoch and 0 <= updates <= epochs * images_per_epoch + images
        if saved['epoch'] != epochs or not is_possible:
            counts = ', '.join(f'{key} {saved[key]}' for key in ('epoch', 'images', 'updates'))
            raise ValueError(f'progress has {counts} and {epochs} epochs of {images_per_epoch} images in its history')
        return cls(**saved)

    def _totals(self, context: DistributedContext) -> Tensor:
        own = [*self.sums.tolist(), self.seconds, self.waiting]
        return context.all_reduce(torch.tensor(own, dtype=torch.float64))


@dataclass(kw_only=True)
class TrainState:
    """Everything that training changes."""

    model: nn.Module  # that is saved
    net: nn.Module  # the same model as it is called: compiled, and wrapped for several processes
    frozen: list[nn.Module]  # modules that stay in eval mode
    loss: Callable[[Tensor, Tensor], Tensor]  # of logits [B, K] and labels [B], or probabilities [B, K] as mixup gives
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None  # None for a constant learning rate
    epochs: int  # of the schedule
    scaler: torch.amp.GradScaler  # of the loss, for float16
    ema: ModelEmaV3 | None
    autocast: Autocast
    progress: Progress = field(default_factory=Progress)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The highest current learning rate."""
        return max(float(group['lr']) for group in self.optimizer.param_groups)

    def train(self) -> None:
        """Set all modules but the frozen ones to train mode."""
        self.net.train()
        for module in self.frozen:
            module.eval()

    def state_dict(self, context: DistributedContext) -> dict[str, Any]:
        """The whole state; each process has to call this."""
        state = dict(
            state_dict=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            progress=self.progress.state_dict(context),
        )
        if self.ema is not None:
            state['state_dict_ema'] = self.ema.module.state_dict()
        if isinstance(self.scheduler, PlateauLRScheduler):  # the others depend on the epoch and the step only
            state['plateau'] = self.scheduler.lr_scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], context: DistributedContext, images_per_epoch: int) -> None:
        """Restore what `state_dict` gave, as read from a file; nothing in it is trusted.

        Raises:
            ValueError: If an entry is missing or not finite, or is not what a run of this model and these settings
                saves.
        """
        self._fill_optimizer()
        expected = self.state_dict(context) | dict(progress=state.get('progress'))
        saved = _mapping(_mapping(state.get('optimizer')).get('state'))
        groups = expected['optimizer']['state']
        for index in groups.keys() - saved.keys():  # a parameter without a gradient has no state
            del groups[index]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        for index in groups if isinstance(self.optimizer, Lookahead) else ():
            if _LOOKAHEAD in _mapping(saved[index]):
                groups[index] = groups[index] | {_LOOKAHEAD: parameters[index]}
        require_like({key: state.get(key) for key in expected}, expected)
        found, wanted = ([group['params'] for group in each['optimizer']['param_groups']] for each in (state, expected))
        if found != wanted:
            raise ValueError('optimizer.param_groups has other params than expected')
        progress = Progress.from_dict(state['progress'], images_per_epoch)
        self.model.load_state_dict(state['state_dict'])
        if self.ema is not None:
            self.ema.module.load_state_dict(state['state_dict_ema'])
        self.optimizer.load_state_dict(state['optimizer'])
        if isinstance(self.scheduler, PlateauLRScheduler):
            self.scheduler.lr_scheduler.load_state_dict(state['plateau'])
        self.scaler.load_state_dict(state['scaler'])
        self.progress = progress
        if not context.is_main:  # the saved sums are those of all processes
            self.progress.reset_sums()

    def _fill_optimizer(self) -> None:
        """Let the optimizer create its state, by a step that changes nothing that is kept."""
        for group in self.optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def build_train_state(
    config: Config, model: nn.Module, context: DistributedContext, updates_per_epoch: int
) -> TrainState:
    """Prepare a model for training.

    Raises:
        ValueError: If the model, the device or timm's factories do not support the settings.
    """
    if config.sync_bn:
        if context.device.type != 'cuda':
            raise ValueError(f'--sync-bn needs CUDA: torch has no SyncBatchNorm on {context.device.type}. Omit it.')
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(context.device, memory_format=memory_format)  # type: ignore[call-overload]
    if config.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    frozen = freeze(model, 'head' if config.linear_probe else config.freeze, all_norms=config.freeze_bn)
    ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=True) if config.model_ema else None
    lr = resolve_lr(config, images_per_step(config, context))
    resolved = config.changed(
        lr=lr,
        warmup_lr=min(config.warmup_lr, lr),
        warmup_epochs=min(config.warmup_epochs, config.epochs / 2),
        sched_on_updates=config.sched_on_updates and config.sched != 'plateau',
    )
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(resolved))
        scheduler, epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(resolved), updates_per_epoch=updates_per_epoch
        )
    except (ValueError, AssertionError, TypeError) as error:
        names = ((config.opt, list_optimizers()), (config.sched, _SCHEDULES))
        hint = ''.join(nearest(name, known) for name, known in names if name not in known)
        reason = str(error).rstrip('.')
        raise ValueError(f'Cannot build opt {config.opt} with sched {config.sched}: {reason}.{hint}') from error
    net: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    if context.size > 1:
        device_ids = [context.device.index] if context.device.type == 'cuda' else None
        net = DistributedDataParallel(net, device_ids=device_ids, find_unused_parameters=False)
    is_float16 = config.amp and config.amp_dtype == 'float16'
    return TrainState(
        model=model,
        net=net,
        frozen=frozen,
        loss=_build_loss(config),
        optimizer=optimizer,
        scheduler=scheduler,
        epochs=epochs,
        scaler=torch.amp.GradScaler(context.device.type, enabled=is_float16),
        ema=ema,
        autocast=build_autocast(config, context.device),
    )


def build_autocast(config: Config, device: torch.device) -> Autocast:
    """Context of a forward pass.

    Raises:
        ValueError: If it is float16 on a CPU.
    """
    if not config.amp:
        return nullcontext
    if config.amp_dtype == 'float16' and device.type != 'cuda':
        raise ValueError('amp_dtype float16 needs CUDA: use bfloat16.')
    return partial(torch.autocast, device.type, getattr(torch, config.amp_dtype))


def _mapping(value: Any) -> Mapping[Any, Any]:
    """The value, or an empty mapping in place of anything else."""
    return value if isinstance(value, dict) else {}


def _build_loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    if config.bce_loss:
        return BinaryCrossEntropy(smoothing=config.smoothing)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = config.smoothing if targets.ndim == 1 else 0.0  # mixup has smoothed probabilities
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    return loss


def resolve_lr(config: Config, images_per_step: int) -> float:
    """The peak learning rate, as timm's `train.py` resolves it.

    `lr` if it is given. Else `lr_base` scaled by `images_per_step / lr_base_size`, or by its square root. 0.001 if
    neither is given.
    """
    if config.lr is not None:
        return config.lr
    if config.lr_base is None:
        return DEFAULT_LR
    ratio = images_per_step / config.lr_base_size
    is_sqrt_scaled = any(part in config.opt.lower() for part in _SQRT_SCALED)
    scale = config.lr_base_scale or ('sqrt' if is_sqrt_scaled else 'linear')
    return config.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio)


def images_per_step(config: Config, context: DistributedContext) -> int:
    """Number of images per optimizer step, in all processes."""
    return config.batch_size * context.size * config.grad_accum_steps
