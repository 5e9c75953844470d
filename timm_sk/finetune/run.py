"""A run from its settings to its outputs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from timm.utils import random_seed

from ..data import ImageStream, Splits, eval_loader, fingerprint, normalizer, seed_of, train_loader
from ..distributed import init_distributed
from ..evaluation.metrics import evaluate
from ..models.inputs import preprocessing
from ..optional_packages import require_package
from ..publishing.hub_folder import require_tag
from ..registry import require_model
from .config import Config
from .curves import plot_confusion, plot_curves
from .dataset import open_splits
from .export import export_run
from .loop import OnStep, Run, fit
from .model import build_model
from .preprocessing import batch_transform, build_transforms
from .run_checkpoint import claim_folder, load_best, restore
from .run_report import open_events
from .signals import stop_requests
from .train_state import build_train_state, images_per_step, resolve_lr

EXPORT = 'export'
_EVAL_BATCH_FACTOR = 2  # evaluation keeps no activations


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Result of a run.

    Attributes:
        folder: Folder of the run.
        export: Folder inside it that timm, transformers and the Hub can load.
        metrics: Metrics of the best epoch.
    """

    folder: Path
    export: Path
    metrics: dict[str, float]


def finetune(
    config: Config,
    *,
    log: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
) -> Finished:
    """Fine-tune a model; under torchrun in all its processes.

    Args:
        config: Settings.
        log: Called with each line of the log, in the main process.
        on_step: Called after each batch in the main process with the state, the number of finished batches, the number
            of batches of an epoch, and `loss`, `top1` in percent and `images_per_s` of the epoch so far.

    Returns:
        The result, in every process.

    Raises:
        ValueError: If settings, data, model or an earlier run do not fit, or the loss is not finite.
        OSError: If a file cannot be written.
        Stopped: If SIGINT or SIGTERM asked for it; the run is saved.
    """
    config = config.changed(model=require_model(config.model))
    require_tag(config.tag)
    for package in ('torchmetrics', 'matplotlib'):
        require_package(package, 'finetune')
    if config.tensorboard:
        require_package('tensorboard', 'tensorboard')
    with init_distributed(config.device) as context, stop_requests() as stop:
        folder = Path(config.output or default_folder(config))
        open_data = partial(open_splits, config)
        splits = context.main_process_first(open_data) if config.dataset_download else open_data()
        random_seed(seed_of(config.seed))  # of the weights that no checkpoint gives
        model = build_model(config, splits.num_classes)
        inputs = preprocessing(model, any_channels=True, img_size=config.img_size)
        splits = splits.with_channels(inputs['input_size'][0])
        train_transform, eval_transform = build_transforms(config, inputs)
        loading: dict[str, Any] = dict(context=context, workers=config.workers)
        loader = train_loader(splits.train, train_transform, batch_size=config.batch_size, seed=config.seed, **loading)
        state = build_train_state(config, model, context, -(-len(loader) // config.grad_accum_steps))
        evaluate_model = partial(
            evaluate,
            loader=eval_loader(
                splits.val, eval_transform, batch_size=_EVAL_BATCH_FACTOR * config.batch_size, **loading
            ),
            num_classes=splits.num_classes,
            context=context,
            prepare=normalizer(inputs['mean'], inputs['std'], context.device, channels_last=config.channels_last),
            autocast=state.autocast,
            max_bad=config.max_bad_images,
        )
        data = context.run_in_main(partial(fingerprint, splits.train, splits.val))
        # in the main process: by themselves, processes would see each other's files
        if context.run_in_main(partial(claim_folder, folder, config, restarted=context.restarts > 0)):
            is_stream = isinstance(splits.train, ImageStream)  # which may count the images of one process
            images = splits.train.total * (context.size if is_stream else 1)
            restore(folder, state, config, context, data=data, images_per_epoch=images)
        with open_events(folder) if config.tensorboard and context.is_main else nullcontext() as events:
            run = Run(
                config=config,
                context=context,
                folder=folder,
                state=state,
                loader=loader,
                transform=batch_transform(config, inputs, splits.num_classes, context.device),
                evaluate=evaluate_model,
                data=data,
                stop=stop,
                log=log if log and context.is_main else _ignore,
                on_step=on_step if on_step and context.is_main else _ignore,
                events=events,
            )
            _log_start(run, splits)
            fit(run)
        return finish(run, splits, inputs)


def finish(run: Run, splits: Splits, inputs: dict[str, Any]) -> Finished:
    """Evaluate the best weights again, and write the plots and the exported folder."""
    config, context, folder = run.config, run.context, run.folder
    best = build_model(config, splits.num_classes, initial_weights=False)
    load_best(folder, best)
    best.to(context.device)
    found = run.evaluate(best)
    metrics = run.state.progress.best or {}
    if context.is_main:
        names = splits.class_names or [str(index) for index in range(splits.num_classes)]
        plot_curves(run.state.progress.history, folder / 'curves.png')
        plot_confusion(found.confusion, names, folder / 'confusion.png')
        export_run(
            folder / EXPORT,
            best.cpu(),
            config=config.changed(lr=resolve_lr(config, images_per_step(config, context))),
            class_names=splits.class_names,
            metrics=dict(metrics, ece=found.ece),
            dataset='synthetic' if config.synthetic else config.data,
            preprocessing=inputs,
        )
        run.log(f'Best: epoch {metrics["epoch"] + 1:.0f}, top-1 {metrics["val_top1"]:.2f} %.')
        run.log(
            f'Load it with timm.create_model("local-dir:{folder / EXPORT}", pretrained=True). Import timm_sk first.'
        )
    context.barrier()
    return Finished(folder=folder, export=folder / EXPORT, metrics=metrics)


def default_folder(config: Config) -> Path:
    """`runs/MODEL-DATA`."""
    name = 'synthetic' if config.synthetic else Path(config.data).stem or 'data'
    return Path('runs') / f'{config.model.replace("/", "-").replace(":", "-")}-{name}'


def _log_start(run: Run, splits: Splits) -> None:
    config, context, progress = run.config, run.context, run.state.progress
    held_out = f' ({splits.held_out:.0%} of each class, held out)' if splits.held_out else ''
    processes = f' in {context.size} processes' if context.size > 1 else ''
    run.log(
        f'{config.model}: {splits.num_classes} classes, {len(splits.train)} training images, {len(splits.val)} '
        f'validation images{held_out}; on {context.device.type}{processes}.'
    )
    if progress.updates:
        run.log(f'Resuming after epoch {progress.epoch}, step {progress.updates}.')


def _ignore(*_: object) -> None:
    pass
