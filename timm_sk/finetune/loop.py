"""The epochs of a run: train, judge, save, until the schedule ends or nothing improves."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, Loader, seed_everything, seed_of
from ..distributed import DistributedContext
from ..evaluation.metrics import Evaluation
from .config import Config
from .progress import Progress
from .run_checkpoint import require_finite, save, save_best, what_to_try
from .run_report import Report
from .signals import Stop
from .train_state import Trainee

_STEPS_BETWEEN_LOOKS = 10  # on a GPU, where looking at a loss waits for it
_OF_STEPS = 1  # keeps the seeds of steps apart from those of images


class Stopped(Exception):  # noqa: N818 - not an error: the run goes on another time
    """Raised when a run has saved itself after it was asked to stop."""


@dataclass(kw_only=True)
class Run:
    """A run and all that it works with.

    Attributes:
        config: The settings.
        context: The processes.
        folder: Where checkpoints and reports go.
        trainee: What trains.
        loader: Its images.
        transform: What makes a training batch of 8-bit images, labels and the epoch.
        evaluate: Judges a model on the validation images.
        report: What a person sees.
        progress: Where the run is.
        data: What tells this data from other.
        stop: Whether it was asked to stop.
    """

    config: Config
    context: DistributedContext
    folder: Path
    trainee: Trainee
    loader: Loader
    transform: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    evaluate: Callable[[nn.Module], Evaluation]
    report: Report
    progress: Progress
    data: str
    stop: Stop

    def save(self) -> None:
        """Write the checkpoint of now."""
        save(self.folder, self.trainee, self.progress, self.config, self.context, data=self.data)

    def stop_if_asked(self) -> None:
        """Leave the run, which is saved, if any process was asked to stop."""
        if self.context.any(self.stop.asked):
            raise Stopped(f'Stopped after epoch {self.progress.epoch}, step {self.progress.updates}.')


def fit(run: Run) -> None:
    """Train from where the run is to its end.

    Raises:
        Stopped: If it was asked to stop; it is saved.
        ValueError: If the loss is not finite, or too many images cannot be read.
        OSError: If a checkpoint cannot be written.
    """
    progress, scheduler = run.progress, run.trainee.scheduler
    while progress.epoch < run.trainee.epochs and not has_converged(progress, run.config):
        train_epoch(run)
        judged = judge(run)
        progress.history.append(judged)
        if progress.best is None or _is_better(judged, progress.best, run.config.eval_metric):
            progress.best = judged
            if run.context.is_main:
                require_finite(run.trainee.judged.state_dict(), progress)
                save_best(run.folder, run.trainee, run.config, judged)
        progress.begin_epoch(progress.epoch + 1)
        if scheduler is not None:
            scheduler.step(progress.epoch, judged[f'val_{run.config.eval_metric}'])
        run.report.finish_epoch(progress.history)  # before the checkpoint, or a kill between them would lose the row
        run.save()
        run.stop_if_asked()


def train_epoch(run: Run) -> None:
    """Train on every image once, from where the epoch is."""
    config, progress, trainee, context = run.config, run.progress, run.trainee, run.context
    trainee.train()
    trainee.optimizer.zero_grad()
    whole = run.loader.batch_size * context.size
    first, count, steps = progress.images // whole, len(run.loader), config.grad_accum_steps
    watch = LossWatch(context.device)
    shown: dict[str, float] = {}
    with run.report.epoch(progress.epoch, trainee.epochs, count, first) as show:
        for number, batch in enumerate(timed(run.loader.epoch(progress.epoch, first), progress), start=first):
            note_bad(progress, batch.bad, config.max_bad_images)
            if not len(batch.targets):
                raise ValueError(f'No image of a batch can be read: {"; ".join(batch.bad[:3])}')
            seed_everything(seed_of(config.seed, _OF_STEPS, progress.epoch, number, context.rank))
            images, targets = run.transform(batch.images, batch.targets, progress.epoch)
            is_last = number % steps == steps - 1 or number == count - 1
            batches = min(steps, count - (number - number % steps))
            loss, logits = train_step(
                trainee, images, targets, config=config, batches=batches, is_last=is_last, updates=progress.updates
            )
            progress.tally(loss, logits, batch.targets)
            watch.note(progress.updates, trainee.lr, loss)
            progress.images += whole
            if is_last:
                progress.updates += 1
            if watch.looks(number):
                watch.require_finite()
                shown = progress.shown()
            show(shown)
            if is_last and number < count - 1:
                save_within_epoch(run, watch)
    watch.require_finite()


def save_within_epoch(run: Run, watch: 'LossWatch') -> None:
    """Write a checkpoint where one is due after this step, or the run was asked to stop, which it does then."""
    asked = run.context.any(run.stop.asked)
    every = run.config.save_every
    if asked or (every and run.progress.updates % every == 0):
        watch.require_finite()
        run.save()
    if asked:
        run.stop_if_asked()


def judge(run: Run) -> dict[str, float]:
    """The row of a finished epoch: training and validation, the same in all processes."""
    trained = run.progress.summed(run.context)
    run.context.broadcast_buffers(run.trainee.model)
    run.context.broadcast_buffers(run.trainee.judged)
    found = run.evaluate(run.trainee.judged)
    tell_bad(run, found.bad)
    return dict(
        epoch=run.progress.epoch,
        train_loss=trained.loss,
        train_top1=trained.top1,
        val_loss=found.loss,
        val_top1=found.top1,
        val_top5=found.top5,
        lr=run.trainee.lr,
        images_per_s=trained.images_per_s,
        wait_share=trained.wait_share,
        seconds=trained.seconds,
    )


def tell_bad(run: Run, judging: list[str]) -> None:
    """Count the images that could not be read in all processes, and name new ones."""
    progress = run.progress
    training = {name for names in run.context.gather(progress.bad) for name in names}
    progress.bad = []
    note_bad(progress, sorted({*training, *judging}), run.config.max_bad_images)
    for line in progress.bad:
        if line not in progress.told:
            run.report.say(f'skipped: {line}')
    progress.told = progress.bad


def has_converged(progress: Progress, config: Config) -> bool:
    """Whether as many epochs as early stopping waits for have passed since the best one."""
    if not config.early_stopping or progress.best is None:
        return False
    return progress.epoch - 1 - progress.best['epoch'] >= config.early_stopping


class LossWatch:
    """Looks at the losses of steps: at each one on a CPU, at some together on a GPU.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == 'cpu' else _STEPS_BETWEEN_LOOKS
        self.unseen: list[tuple[int, float, Tensor]] = []

    def note(self, step: int, lr: float, loss: Tensor) -> None:
        """Remember a loss."""
        self.unseen.append((step, lr, loss))

    def looks(self, number: int) -> bool:
        """Whether to look after this batch."""
        return number % self.every == self.every - 1

    def require_finite(self) -> None:
        """Look at the losses since the last look.

        Raises:
            ValueError: If one is not finite; names the first.
        """
        for step, lr, loss in self.unseen:
            if not math.isfinite(loss.item()):
                raise ValueError(f'The loss is {loss.item()} at step {step}, with lr {lr:.3g}. {what_to_try()}')
        self.unseen.clear()


def timed(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    """Pass batches on, and count the time that they are waited for, and all time."""
    asked = time.perf_counter()
    for batch in batches:
        came = time.perf_counter()
        progress.waiting += came - asked
        yield batch
        done = time.perf_counter()
        progress.seconds += done - asked
        asked = done


def note_bad(progress: Progress, bad: list[str], most: int) -> None:
    """Remember images that could not be read.

    Raises:
        ValueError: If they are more than may be.
    """
    fresh = [line for line in bad if line not in progress.bad]
    progress.bad = progress.bad + fresh
    if fresh and len(progress.bad) > most:
        raise ValueError(
            f'{len(progress.bad)} image{"s" * (len(progress.bad) > 1)} cannot be read, more than --max-bad-images '
            f'{most}: {"; ".join(progress.bad[:3])}'
        )


def _is_better(row: dict[str, float], best: dict[str, float], metric: str) -> bool:
    new, old = row[f'val_{metric}'], best[f'val_{metric}']
    return math.isnan(old) or (new < old if metric == 'loss' else new > old)


def train_step(
    trainee: Trainee, images: Tensor, targets: Tensor, *, config: Config, batches: int, is_last: bool, updates: int
) -> tuple[Tensor, Tensor]:
    """Add a batch's gradients, and on the last batch of a step change the weights.

    Args:
        trainee: What trains.
        images: ImageDataset [B, C, H, W] as the model takes them.
        targets: Labels [B], or shares of the classes [B, K].
        config: The settings.
        batches: Batches whose gradients make this step.
        is_last: Whether this is the last of them.
        updates: Steps of the optimizer before this one.

    Returns:
        The loss, a number, and the logits [B, K], both without gradients.
    """
    net = trainee.net
    # the processes' gradients are averaged once a step
    alone = net.no_sync() if isinstance(net, DistributedDataParallel) and not is_last else nullcontext()
    with alone:
        with trainee.autocast():
            logits = net(images)
            loss = trainee.loss(logits, targets)
        trainee.scaler.scale(loss / batches).backward()
    if is_last:
        if config.clip_grad is not None:
            trainee.scaler.unscale_(trainee.optimizer)
            clipped = model_parameters(trainee.model, exclude_head=config.clip_mode == 'agc')
            dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.optimizer.zero_grad()
        if trainee.ema is not None:
            trainee.ema.update(trainee.model, step=updates + 1)
        if trainee.scheduler is not None:
            trainee.scheduler.step_update(updates + 1)
    return loss.detach(), logits.detach().float()
