"""Validate models: accuracy on a data set, with the crops and the numbers of timm's validate.py."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm.data
import timm.models
import torch
from timm.utils import check_batch_size_retry, decay_batch_step, reparameterize_model
from torch import nn
from torchvision.transforms import Grayscale

from ..data import ImageDataset, ImageStream, eval_loader, normalizer
from ..distributed import DistributedContext, fail_together
from ..factory import ready_model
from ..models.inputs import preprocessing
from ..pretrained import check_state_dict, read_checkpoint
from ..registry import require_model
from .imagenet_labels import MODEL_CLASSES
from .metrics import Evaluation, evaluate
from .validation_data import ValidationData

COLUMNS = ('model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation')
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')
AMP_DTYPES = ('bfloat16', 'float16')


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One model's result.

    Attributes:
        model: Its name.
        evaluation: What was found.
        class_names: Of the classes that were judged; None where nothing names them.
        param_count: Parameters, after reparameterization if that was asked for.
        img_size: Width of its images in pixels.
        crop_pct: Share of an image's shorter side that the crop keeps.
        interpolation: How images were resized.
        batch_size: ImageDataset in a batch, after retries.
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


def validate(
    model: str,
    data: ValidationData,
    *,
    context: DistributedContext | None = None,
    checkpoint: str | None = None,
    use_ema: bool = False,
    num_classes: int | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    use_train_size: bool = False,
    reparam: bool = False,
    channels_last: bool | None = None,
    amp: bool = False,
    amp_dtype: str = 'bfloat16',
    batch_size: int = 64,
    workers: int = 2,
    max_bad_images: int = 0,
    retry: bool = False,
    say: Callable[[str], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Validation:
    """Judge one model, with the preprocessing of its checkpoint. All processes must call it.

    Args:
        model: Architecture, `arch.tag`, or what else `timm.create_model` takes.
        data: By `timm_sk.evaluation.validation_data.open_validation_data`.
        context: The processes; if not given this one alone, on the CPU.
        checkpoint: A file of weights instead of the model's own.
        use_ema: Take the averaged weights that training has saved in that file, if it has any.
        num_classes: Of a model whose weights are in such a file; the architecture's if not given.
        img_size: Height and width of its images; the checkpoint's for tests if not given, and so are the next two.
        crop_pct: Share of an image's shorter side that the crop keeps.
        interpolation: One of `INTERPOLATIONS`.
        use_train_size: Take the checkpoint's size and crop of training.
        reparam: Reparameterize the model, by timm.
        channels_last: Memory format; channels last on CUDA and contiguous elsewhere if not given.
        amp: Mixed precision.
        amp_dtype: One of `AMP_DTYPES`.
        batch_size: ImageDataset in a batch of one process.
        workers: Processes that load images, for each of the context's.
        max_bad_images: ImageDataset that cannot be read to leave out before it stops.
        retry: On lack of memory go on with smaller batches.
        say: Called with a line on each of these.
        on_batch: Called after each batch with the number of this process's images in it.

    Raises:
        ValueError: If a setting is none, the model or its weights are not to be had, it has other classes than the
            data, images cannot be read, or there is no memory for a batch.
        RuntimeError: If the model fails.
    """
    context = context or DistributedContext()
    _require_settings(interpolation, crop_pct, amp_dtype, batch_size)
    if context.size > 1 and isinstance(data.images, ImageStream) and data.images.shards is None:
        raise ValueError('hfids/ and tfds/ do not share images so that each comes once: validate in one process.')
    created = partial(
        _created,
        model,
        context=context,
        checkpoint=checkpoint,
        use_ema=use_ema,
        num_classes=num_classes,
        img_size=img_size,
        channels_last=channels_last,
    )
    net = fail_together(context, created)
    classes = _judged_classes(model, net, data)
    if reparam:
        net = reparameterize_model(net)
    config = preprocessing(
        net,
        use_test_size=not use_train_size,
        img_size=img_size,
        crop_pct=crop_pct,
        interpolation=interpolation,
    )
    transform = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)
    if config['input_size'][0] == 1:
        transform = type(transform)([Grayscale(), *transform.transforms])
    is_channels_last = context.device.type == 'cuda' if channels_last is None else channels_last
    prepare = normalizer(config['mean'], config['std'], context.device, channels_last=is_channels_last)
    autocast = partial(torch.autocast, context.device.type, dtype=getattr(torch, amp_dtype)) if amp else nullcontext
    while True:
        loader = eval_loader(data.images, transform, batch_size=batch_size, context=context, workers=workers)
        try:
            evaluation = evaluate(
                net,
                loader,
                num_classes=classes,
                context=context,
                prepare=prepare,
                autocast=autocast,
                label_map=data.label_map,
                on_batch=on_batch,
                max_bad=max_bad_images,
            )
            break
        except RuntimeError as error:  # whose message is the same in all processes, and so is what follows from it
            if not _is_lack_of_memory(error):
                raise
            smaller = decay_batch_step(batch_size) if retry else 0
            if not smaller:
                raise ValueError(f'No memory for batches of {batch_size}: take a smaller one, or --retry.') from error
        if say:
            say(f'{model}: no memory for batches of {batch_size}, trying {smaller}.')
        batch_size = smaller
        if context.device.type == 'cuda':
            torch.cuda.empty_cache()
    _require_whole(data.images, evaluation, max_bad_images)
    return Validation(
        model=model,
        evaluation=evaluation,
        class_names=data.class_names,
        param_count=sum(parameter.numel() for parameter in net.parameters()),
        img_size=config['input_size'][-1],
        crop_pct=config['crop_pct'],
        interpolation=config['interpolation'],
        batch_size=batch_size,
    )


def _created(
    name: str,
    *,
    context: DistributedContext,
    checkpoint: str | None,
    use_ema: bool,
    num_classes: int | None,
    img_size: int | None,
    channels_last: bool | None,
) -> nn.Module:
    """The model with its weights, in eval mode on the process's device."""
    require_model(name)
    if num_classes is not None and not checkpoint:
        raise ValueError('num_classes is of a model whose weights are in a file: name that with --checkpoint.')
    if use_ema and not checkpoint:
        raise ValueError('use_ema chooses among the weights in a file: name that with --checkpoint.')
    weights = read_checkpoint(checkpoint, use_ema=use_ema) if checkpoint else None
    arguments: dict[str, Any] = {} if num_classes is None else dict(num_classes=num_classes)
    cfg = None if ':' in name else timm.models.get_pretrained_cfg(name)
    if img_size is not None and cfg and cfg.fixed_input_size:
        arguments['img_size'] = img_size
    model = ready_model(name, checkpoint is None, device=context.device, channels_last=channels_last, **arguments)
    if weights is not None:
        check_state_dict(weights, {key: tensor.shape for key, tensor in model.state_dict().items()})
        model.load_state_dict(weights, strict=False)  # all but num_batches_tracked are there
    return model


def _require_settings(interpolation: str | None, crop_pct: float | None, amp_dtype: str, batch_size: int) -> None:
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(f'interpolation must be one of {", ".join(INTERPOLATIONS)}, got {interpolation!r}.')
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f'crop_pct must be above 0 and at most 1, got {crop_pct}.')
    if amp_dtype not in AMP_DTYPES:
        raise ValueError(f'amp_dtype must be {" or ".join(AMP_DTYPES)}, got {amp_dtype!r}.')
    if batch_size < 1:
        raise ValueError(f'batch_size must be above 0, got {batch_size}.')


def _judged_classes(name: str, model: Any, data: ValidationData) -> int:
    """How many classes are judged; checks that the model has those of the data."""
    count: int = model.num_classes
    if not count:
        raise ValueError(f'{name} has no classifier: validate a model that has one.')
    expected = MODEL_CLASSES if data.label_map else len(data.class_names) if data.class_names else count
    if count != expected:
        of_whom = f'the labels {data.label_map.labels} are for' if data.label_map else 'the data set has'
        raise ValueError(f'{name} has {count} classes, {of_whom} {expected}: choose a model of those classes.')
    return data.label_map.num_classes if data.label_map else count


def _require_whole(images: ImageDataset | ImageStream, evaluation: Evaluation, max_bad_images: int) -> None:
    """Check that no image of a stream, whose reader skips a shard's end that is damaged, is missing."""
    missing = images.total - evaluation.count
    if isinstance(images, ImageStream) and missing > max_bad_images:
        raise ValueError(
            f'{missing} of {images.total} images are missing from the shards or damaged, {max_bad_images} may be.'
        )


def _is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether smaller batches may help; beside CUDA's words those of the CPU's and of cuDNN's allocators."""
    text = str(error).lower()
    phrases = ('out of memory', "can't allocate memory", 'not enough memory', 'alloc_failed')
    return check_batch_size_retry(text) and any(phrase in text for phrase in phrases)
