"""The loop of a run, top to bottom: epochs, steps, evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import model_parameters
from timm.utils import dispatch_clip_grad, distribute_bn, random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, Loader, seed_of
from ..data.images import few, require_few_bad
from ..distributed import DistributedContext
from ..evaluation.metrics import Evaluation
from .config import Config
from .run_checkpoint import WHAT_TO_TRY, save, save_best
from .run_report import format_metrics, write_events, write_metrics
from .signals import StopRequest
from .train_state import Progress, TrainState

OnStep = Callable[[TrainState, int, int, dict[str, float]], None]

_STEPS_PER_CHECK = 10  # on a GPU, where reading a loss waits for it
_STEP_SEEDS = 1  # separates the seeds of steps from those of images


class Stopped(Exception):  # noqa: N818 - not an error: the run can resume
    """Raised when a run was asked to stop and has saved itself."""


@dataclass(kw_only=True)
class Run:
    """What the parts of a run share."""

    config: Config
    context: DistributedContext
    folder: Path
    state: TrainState
    loader: Loader
    transform: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # as `batch_transform` makes it
    evaluate: Callable[[nn.Module], Evaluation]  # on the validation images
    data: str  # its fingerprint
    stop: StopRequest
    log: Callable[[str], None]
    on_step: OnStep  # as in `finetune`
    events: Any  # writer of TensorBoard events, if enabled

    def save(self) -> None:
        """Write the checkpoint of this moment."""
        save(self.folder, self.state, self.config, self.context, data=self.data)

    def is_asked_to_stop(self) -> bool:
        """Whether any process was asked to stop."""
        return self.context.any(self.stop.is_set)


def fit(run: Run) -> None:
    """Train to the end of the schedule.

    Raises:
        Stopped: If the run was asked to stop; it is saved.
        ValueError: If the loss is not finite, or too many images cannot be read.
        OSError: If a checkpoint cannot be written.
    """
    state, progress, metric = run.state, run.state.progress, run.config.eval_metric
    while progress.epoch < state.epochs:
        since_best = 0 if progress.best is None else progress.epoch - 1 - progress.best['epoch']
        if run.config.early_stopping and since_best >= run.config.early_stopping:
            break
        train_epoch(run)
        row = evaluate_epoch(run)
        progress.history.append(row)
        if progress.best is None or _is_better(row, progress.best, metric):
            progress.best = row
            if run.context.is_main:
                save_best(run.folder, state, run.config, row)
        progress.epoch, progress.images = progress.epoch + 1, 0
        progress.reset_sums()
        if state.scheduler is not None:
            state.scheduler.step(progress.epoch, row[f'val_{metric}'])
        if run.context.is_main:  # before the checkpoint, or a kill between them would lose the row
            write_metrics(run.folder, progress.history)
        if run.events is not None:
            write_events(run.events, progress.history)
        run.log(f'epoch {progress.epoch}/{state.epochs}: {format_metrics(row)}')
        run.save()
        if run.is_asked_to_stop():
            raise Stopped(f'Stopped after epoch {progress.epoch}, step {progress.updates}.')


def train_epoch(run: Run) -> None:
    """Train on every image once, from where the epoch is."""
    config, state, progress = run.config, run.state, run.state.progress
    state.train()
    state.optimizer.zero_grad()
    images_per_batch = run.loader.batch_size * run.context.size
    first, count, accumulated = progress.images // images_per_batch, len(run.loader), config.grad_accum_steps
    losses: list[tuple[int, float, Tensor]] = []  # step, learning rate and loss, not checked yet
    steps_per_check = 1 if run.context.device.type == 'cpu' else _STEPS_PER_CHECK
    metrics: dict[str, float] = {}
    for number, batch in enumerate(timed(run.loader.epoch(progress.epoch, first), progress), start=first):
        progress.bad = [*dict.fromkeys(progress.bad + batch.bad)]
        require_few_bad(progress.bad, config.max_bad_images)
        if not len(batch.targets):
            raise ValueError(f'No image of a batch can be read: {few(batch.bad)}')
        random_seed(seed_of(config.seed, _STEP_SEEDS, progress.epoch, number, run.context.rank))
        images, targets = run.transform(batch.images, batch.targets, progress.epoch)
        is_last = number % accumulated == accumulated - 1 or number == count - 1
        batches = min(accumulated, count - (number - number % accumulated))
        loss, logits = train_step(state, images, targets, config=config, batches=batches, is_last=is_last)
        progress.add(loss, logits, batch.targets)
        progress.images += images_per_batch
        losses.append((progress.updates, state.lr, loss))
        if is_last:
            progress.updates += 1
        if number % steps_per_check == steps_per_check - 1:
            require_finite_losses(losses)
            metrics = progress.batch_metrics()
        run.on_step(state, number + 1, count, metrics)
        if is_last and number < count - 1:
            is_asked = run.is_asked_to_stop()
            if is_asked or (config.save_every and progress.updates % config.save_every == 0):
                require_finite_losses(losses)
                run.save()
            if is_asked:
                raise Stopped(f'Stopped after epoch {progress.epoch}, step {progress.updates}.')
    require_finite_losses(losses)


def train_step(
    state: TrainState, images: Tensor, targets: Tensor, *, config: Config, batches: int = 1, is_last: bool = True
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one of the batches of a step; after the last one update the weights.

    Takes model inputs [B, C, H, W], and labels [B] or class probabilities [B, K]. Returns the loss, and the logits
    [B, K], both detached.
    """
    net = state.net
    # gradients are averaged over the processes once per step
    no_sync = net.no_sync() if isinstance(net, DistributedDataParallel) and not is_last else nullcontext()
    with no_sync:
        with state.autocast():
            try:
                logits = net(images)
            except ValueError as error:
                if not any(words in str(error) for words in ('BatchNorm', 'more than 1 value per channel')):
                    raise
                advice = 'raise --batch-size, or freeze the norms with --freeze-bn'
                raise ValueError(
                    f'BatchNorm needs at least 2 images per step and process, got {len(images)}: {advice}.'
                ) from error
            loss = state.loss(logits, targets)
        state.scaler.scale(loss / batches).backward()
    if is_last:
        if config.clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            clipped = model_parameters(state.model, exclude_head=config.clip_mode == 'agc')
            dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        updates = state.progress.updates + 1
        if state.ema is not None:
            state.ema.update(state.model, step=updates)
        if state.scheduler is not None:
            state.scheduler.step_update(updates)
    return loss.detach(), logits.detach().float()


def evaluate_epoch(run: Run) -> dict[str, float]:
    """Metrics of a finished epoch, training and validation, the same in all processes."""
    state, progress = run.state, run.state.progress
    trained = progress.epoch_metrics(run.context)
    if run.context.size > 1:  # all take the main process's running statistics
        for model in (state.model, state.eval_model):
            distribute_bn(model, run.context.size)
    found = run.evaluate(state.eval_model)
    progress.bad = sorted({*found.bad, *(line for lines in run.context.all_gather(progress.bad) for line in lines)})
    require_few_bad(progress.bad, run.config.max_bad_images)
    for line in progress.bad:
        if line not in progress.reported:
            run.log(f'skipped: {line}')
    progress.reported = progress.bad
    validated = dict(val_loss=found.loss, val_top1=found.top1, val_top5=found.top5)
    return dict(epoch=progress.epoch, **trained, **validated, lr=state.lr)


def require_finite_losses(losses: list[tuple[int, float, Tensor]]) -> None:
    """Check that losses, with their steps and learning rates, are finite, and clear the list."""
    for step, lr, loss in losses:
        if not math.isfinite(loss.item()):
            raise ValueError(f'The loss is {loss.item()} at step {step}, with lr {lr:.3g}. {WHAT_TO_TRY}')
    losses.clear()


def timed(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    """Pass batches on, and measure the time of the epoch and how much of it is waiting for them."""
    start = time.perf_counter()
    for batch in batches:
        loaded = time.perf_counter()
        progress.waiting += loaded - start
        yield batch
        end = time.perf_counter()
        progress.seconds += end - start
        start = end


def _is_better(row: dict[str, float], best: dict[str, float], metric: str) -> bool:
    new, old = row[f'val_{metric}'], best[f'val_{metric}']
    return math.isnan(old) or (new < old if metric == 'loss' else new > old)
