"""A whole run: data, model, loop, and what is left in the end."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..data import ImageDataset, Splits, eval_loader, normalizer, seed_everything, seed_of, train_loader
from ..distributed import DistributedContext, init_distributed
from ..evaluation.metrics import Evaluation, evaluate, require_torchmetrics
from ..publishing.hub_folder import require_tag
from .config import Config
from .curves import draw_confusion, draw_curves
from .dataset import open_data
from .export import export_run
from .loop import Run, fit
from .model import build_model
from .preprocessing import batch_transform, data_config_of, transforms_of
from .progress import Progress
from .run_checkpoint import BEST, LAST, read, restore, write_atomically
from .run_report import Report
from .signals import stop_requests
from .train_state import build_trainee, images_per_step, resolve_lr

CONFIG, EXPORT = 'config.yaml', 'export'
CLAIM = '.run'  # says that a folder is a run's, and by which start of torchrun
_JUDGED_TOGETHER = 2  # times the training batch: no gradients take memory


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run leaves.

    Attributes:
        folder: The run's.
        export: The folder for a hub inside it.
        metrics: The best epoch's row.
    """

    folder: Path
    export: Path
    metrics: dict[str, float]


def finetune(config: Config) -> Finished:
    """Fine-tune a model; under torchrun in all its processes together.

    Args:
        config: The settings.

    Returns:
        What is there in the end, in every process.

    Raises:
        ValueError: If settings, data, model or an earlier run do not fit, or the loss is not finite.
        OSError: If something cannot be written.
        Stopped: If SIGINT or SIGTERM asked for it; the run is saved.
    """
    require_tag(config.tag)
    require_torchmetrics()
    with init_distributed(config.device) as context, stop_requests() as stop:
        folder = Path(config.output or default_folder(config))
        opening = partial(open_data, config)
        splits = context.main_process_first(opening) if config.dataset_download else opening()
        seed_everything(seed_of(config.seed))  # what the weights are drawn from that no checkpoint gives
        model = build_model(config, splits.num_classes)
        data_config = data_config_of(config, model)
        training, judging = transforms_of(config, data_config)
        loader = train_loader(
            splits.train,
            training,
            batch_size=config.batch_size,
            context=context,
            seed=config.seed,
            workers=config.workers,
        )
        if not len(loader):
            raise ValueError(f'{len(splits.train)} images do not fill a batch of each process: lower --batch-size.')
        trainee = build_trainee(config, model, context, -(-len(loader) // config.grad_accum_steps))
        prepare = normalizer(
            data_config['mean'], data_config['std'], context.device, channels_last=config.channels_last
        )
        validation = eval_loader(
            splits.val,
            judging,
            batch_size=_JUDGED_TOGETHER * config.batch_size,
            context=context,
            workers=config.workers,
        )
        judge = partial(
            evaluate,
            loader=validation,
            num_classes=splits.num_classes,
            context=context,
            prepare=prepare,
            autocast=trainee.autocast,
            max_bad=config.max_bad_images,
        )
        data = fingerprint(splits)
        resumes = _claim(folder, config, context)
        report = Report(folder, active=context.is_main, tensorboard=config.tensorboard)
        try:
            progress = restore(folder, trainee, config, context, data=data) if resumes else Progress()
            _tell(report, config, splits, progress, context)
            fit(
                Run(
                    config=config,
                    context=context,
                    folder=folder,
                    trainee=trainee,
                    loader=loader,
                    transform=batch_transform(config, data_config, splits.num_classes, context.device),
                    evaluate=judge,
                    report=report,
                    progress=progress,
                    data=data,
                    stop=stop,
                )
            )
            return _finish(folder, config, splits, data_config, progress, judge, context, report)
        finally:
            report.close()


def default_folder(config: Config) -> Path:
    """`runs/MODEL-DATA`."""
    name = 'synthetic' if config.synthetic else Path(config.data).stem or 'data'
    return Path('runs') / f'{config.model.replace("/", "-").replace(":", "-")}-{name}'


def fingerprint(splits: Splits) -> str:
    """What tells data from other data: the numbers of images, and a hash of their labels and the classes."""
    known = hashlib.sha256(repr(splits.class_names).encode())
    for part in (splits.train, splits.val):
        known.update(repr(part.targets() if isinstance(part, ImageDataset) else len(part)).encode())
    return f'{len(splits.train)}+{len(splits.val)} images, {splits.num_classes} classes, {known.hexdigest()[:12]}'


def _claim(folder: Path, config: Config, context: DistributedContext) -> bool:
    """Make the folder of a run, or find one to go on with; gives whether there is one.

    The first process looks, and all hear what it found: looking by themselves, they would see each other's files.
    """
    found: str | bool = False
    if context.is_main:
        try:
            found = _claim_alone(folder, config, restarted=context.restarts > 0)
        except (OSError, ValueError) as error:
            found = str(error)
    found = context.gather(found)[0]
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _claim_alone(folder: Path, config: Config, *, restarted: bool) -> bool:
    if config.resume not in (None, 'auto'):
        raise ValueError(f'resume must be "auto", got {config.resume!r}: the run that goes on is that in --output.')
    there = folder.exists()
    if there and not folder.is_dir():
        raise ValueError(f'{folder} is a file: name a folder with --output.')
    launch, claim = os.environ.get('TORCHELASTIC_RUN_ID', ''), folder / CLAIM
    names = {path.name for path in folder.iterdir()} if there else set()
    if names and CLAIM not in names:
        raise ValueError(f'{folder} is not empty and holds no run: choose another --output.')
    goes_on = config.resume == 'auto' or (restarted and bool(names) and claim.read_text() == launch)
    if not goes_on and names - {CLAIM, CONFIG}:
        raise ValueError(f'{folder} is not empty: go on with the run in it by --resume auto, or choose --output.')
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(claim, launch.encode())
    for partly in folder.glob('*.partial'):  # of a process that was killed as it wrote
        partly.unlink()
    if goes_on and (folder / LAST).exists():
        return True
    content = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, content.encode())
    return False


def _tell(report: Report, config: Config, splits: Splits, progress: Progress, context: DistributedContext) -> None:
    cut_off = f', {config.val_fraction:.0%} of each class, cut off' if splits.was_cut else ''
    processes = f' in {context.size} processes' if context.size > 1 else ''
    report.say(
        f'{config.model}: {len(splits.train)} images of {splits.num_classes} classes to train on, {len(splits.val)} '
        f'to judge by{cut_off}; on {context.device.type}{processes}.'
    )
    if progress.updates:
        report.say(f'Going on after epoch {progress.epoch}, step {progress.updates}.')


def _finish(
    folder: Path,
    config: Config,
    splits: Splits,
    data_config: dict[str, Any],
    progress: Progress,
    judge: Callable[[nn.Module], Evaluation],
    context: DistributedContext,
    report: Report,
) -> Finished:
    """Judge the best weights once more, and write the images and the folder for a hub."""
    best = build_model(config, splits.num_classes, pretrained=False, checkpoint_path='')
    best.load_state_dict(read(folder / BEST, context.device)['state_dict'])
    best.to(context.device)
    found = judge(best)
    metrics = progress.best or {}
    if context.is_main:
        names = splits.class_names or [str(index) for index in range(splits.num_classes)]
        draw_curves(progress.history, folder / 'curves.png')
        draw_confusion(found.confusion, names, folder / 'confusion.png')
        export_run(
            folder / EXPORT,
            best.cpu(),
            config=config.changed(lr=resolve_lr(config, images_per_step(config, context))),
            class_names=splits.class_names,
            metrics=dict(metrics, ece=found.ece),
            dataset='synthetic' if config.synthetic else config.data,
            input_size=data_config['input_size'],
            data_config=data_config,
        )
        report.say(
            f'Best: epoch {metrics["epoch"] + 1:.0f}, top-1 {metrics["val_top1"]:.2f} %. {folder / EXPORT} loads'
        )
        report.say(f'with timm.create_model("local-dir:{folder / EXPORT}", pretrained=True).')
    context.wait()
    return Finished(folder=folder, export=folder / EXPORT, metrics=metrics)
