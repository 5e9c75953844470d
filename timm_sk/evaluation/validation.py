"""Validation of models: accuracy on a data set, with the crops and the numbers of timm's validate.py."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm.models
import torch
from timm.utils import check_batch_size_retry, decay_batch_step, reparameterize_model
from torch import Tensor, nn

from ..data import ImageStream, create_transform, eval_loader, normalizer, with_channels
from ..distributed import DistributedContext, fail_together
from ..factory import ready_model
from ..inference.prediction import checkpoint_name
from ..models.inputs import preprocessing
from ..pretrained import load_checked, read_checkpoint
from ..registry import require_model
from . import metrics
from .imagenet_labels import MODEL_CLASSES
from .metrics import Evaluation
from .validation_config import ValidationConfig
from .validation_data import ValidationData, open_validation_data


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Result of one model.

    Attributes:
        model: Name of the model.
        evaluation: Metrics.
        class_names: Names of the classes; None if unknown.
        param_count: Number of parameters, after reparameterization if any.
        img_size: Width of the input in pixels.
        crop_pct: Fraction of the shorter side that the crop keeps.
        interpolation: Interpolation of resizing.
        batch_size: Batch size, after retries.
    """

    model: str
    evaluation: Evaluation
    class_names: list[str] | None
    param_count: int
    img_size: int
    crop_pct: float
    interpolation: str
    batch_size: int

    def row(self) -> dict[str, str | int | float]:
        """The columns of timm's results file, rounded as there."""
        top1, top5 = self.evaluation.top1, self.evaluation.top5
        return dict(
            model=self.model,
            top1=round(top1, 4),
            top1_err=round(100 - top1, 4),
            top5=round(top5, 4),
            top5_err=round(100 - top5, 4),
            param_count=round(self.param_count / 1e6, 2),
            img_size=self.img_size,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
        )


def evaluate(model: nn.Module, data: str | Path, **settings: Any) -> Evaluation:
    """Evaluate a classifier on a data set: top-1, top-5, loss, calibration, accuracy of each class.

    The images get the preprocessing of the model's checkpoint. It needs `pip install 'timm_sk[finetune]'`.

    Args:
        model: Classifier of timm, such as `timm_sk.load` returns, on any device; it is called in eval mode and left in
            its own.
        data: Folder or tar of images with a folder per class, with or without splits, or `torch/NAME`, `hfds/NAME`,
            `wds/FOLDER`, `hfids/NAME` or `tfds/NAME` as in `timm.data.create_dataset`.
        **settings: Other fields of `ValidationConfig`, which are the options of `timm-sk validate`, such as `split`,
            `batch_size`, `workers`, `labels` and `max_bad_images`.

    Raises:
        TypeError: If a setting does not exist.
        ValueError: If a setting is invalid, the data set does not exist, its classes are not the model's, images cannot
            be read, there is not enough memory for a batch, or torchmetrics is not installed.

    Examples:
        >>> model, _ = timm_sk.load('skresnet34')
        >>> timm_sk.evaluate(model, 'imagenet', batch_size=128).top1  # percent
    """
    config = ValidationConfig(data=str(data), **settings)
    return validate(model, config, context=DistributedContext(device=next(model.parameters()).device)).evaluation


def validate(
    model: str | nn.Module,
    config: ValidationConfig,
    data: ValidationData | None = None,
    *,
    context: DistributedContext | None = None,
    log: Callable[[str], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Validation:
    """Evaluate one model with the preprocessing of its checkpoint. All processes must call it.

    Args:
        model: Architecture, `arch.tag`, what else `timm.create_model` takes, or a model on the context's device.
        config: Settings.
        data: Opened data of the settings, to be shared by several models; opened here by default.
        context: Processes and device; this process on the CPU by default.
        log: Called with a line for each retry with a smaller batch.
        on_batch: Called after each batch with its number of images in this process.

    Raises:
        ValueError: If the model or its weights do not exist, its classes are not those of the data, images cannot be
            read, or there is not enough memory for a batch.
        RuntimeError: If the model fails.
    """
    context, data = context or DistributedContext(), data or open_validation_data(config)
    if context.size > 1 and isinstance(data.images, ImageStream) and data.images.shards is None:
        raise ValueError('hfids/ and tfds/ do not distribute each image once: validate in one process.')
    if isinstance(model, str):
        name, net = model, fail_together(context, partial(_create_model, model, config, context.device))
    elif config.checkpoint:
        raise ValueError('The model has its weights: omit the checkpoint, or name the architecture.')
    else:
        name, net = checkpoint_name(model), model
    num_classes = _num_classes(name, net, data)
    if config.reparam:
        net = reparameterize_model(net)
    inputs = preprocessing(
        net,
        any_channels=True,
        use_test_size=not config.use_train_size,
        img_size=config.img_size,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    images, transform = with_channels(data.images, inputs['input_size'][0]), create_transform(**inputs)
    channels_last = context.device.type == 'cuda' if config.channels_last is None else config.channels_last
    normalize = normalizer(inputs['mean'], inputs['std'], context.device, channels_last=channels_last)
    dtype, amp_dtype = next(net.parameters()).dtype, getattr(torch, config.amp_dtype)
    autocast = partial(torch.autocast, context.device.type, dtype=amp_dtype) if config.amp else nullcontext

    def prepare(pixels: Tensor) -> Tensor:
        return normalize(pixels).to(dtype)

    batch_size = config.batch_size
    while True:
        loader = eval_loader(images, transform, batch_size=batch_size, context=context, workers=config.workers)
        try:
            evaluation = metrics.evaluate(
                net,
                loader,
                num_classes=num_classes,
                context=context,
                prepare=prepare,
                autocast=autocast,
                label_map=data.label_map,
                on_batch=on_batch,
                max_bad=config.max_bad_images,
            )
            break
        except RuntimeError as error:  # with the same message, and so the same consequences, in all processes
            if not _is_out_of_memory(error):
                raise
            smaller = decay_batch_step(batch_size) if config.retry else 0
            if not smaller:
                raise ValueError(
                    f'Out of memory with batch size {batch_size}: use a smaller one, or --retry.'
                ) from error
        if log:
            log(f'{name}: out of memory with batch size {batch_size}, retrying with {smaller}.')
        batch_size = smaller
        if context.device.type == 'cuda':
            torch.cuda.empty_cache()
    missing = data.images.total - evaluation.count
    if isinstance(data.images, ImageStream) and missing > config.max_bad_images:  # its reader skips a damaged end
        raise ValueError(
            f'{missing} of {data.images.total} images are missing from the shards or damaged; '
            f'--max-bad-images allows {config.max_bad_images}.'
        )
    return Validation(
        model=name,
        evaluation=evaluation,
        class_names=data.class_names,
        param_count=sum(parameter.numel() for parameter in net.parameters()),
        img_size=inputs['input_size'][-1],
        crop_pct=inputs['crop_pct'],
        interpolation=inputs['interpolation'],
        batch_size=batch_size,
    )


def _create_model(name: str, config: ValidationConfig, device: torch.device) -> nn.Module:
    """The model with its weights, in eval mode on the device."""
    name = require_model(name)
    weights = read_checkpoint(config.checkpoint, use_ema=config.use_ema) if config.checkpoint else None
    arguments: dict[str, Any] = {} if config.num_classes is None else dict(num_classes=config.num_classes)
    cfg = None if ':' in name else timm.models.get_pretrained_cfg(name)
    if config.img_size is not None and cfg and cfg.fixed_input_size:
        arguments['img_size'] = config.img_size
    model = ready_model(name, weights is None, device=device, channels_last=config.channels_last, **arguments)
    if weights is not None:
        load_checked(model, weights)
    return model


def _num_classes(name: str, model: Any, data: ValidationData) -> int:
    """Number of classes of the labels; checks that the model has those of the data."""
    count: int = model.num_classes
    if not count:
        raise ValueError(f'{name} has no classifier: validate a model that has one.')
    expected = MODEL_CLASSES if data.label_map else len(data.class_names) if data.class_names else count
    if count != expected:
        owner = f'the labels {data.label_map.labels} are for' if data.label_map else 'the data set has'
        raise ValueError(f'{name} has {count} classes, {owner} {expected}: choose a model of those classes.')
    labels, classes = [*(model.pretrained_cfg.get('label_names') or ())], data.class_names or []
    if labels != classes and sorted(labels) == sorted(classes):
        raise ValueError(
            f"{name} has the data set's classes in another order, {', '.join(labels[:3])}, …: "
            'name them in that order in a file, --class-map FILE.'
        )
    return len(data.label_map.class_names) if data.label_map else count


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether smaller batches may help; also for the messages of the CPU's and of cuDNN's allocators."""
    text = str(error).lower()
    phrases = ('out of memory', "can't allocate memory", 'not enough memory', 'alloc_failed')
    return check_batch_size_retry(text) and any(phrase in text for phrase in phrases)
