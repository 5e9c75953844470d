"""Settings of a run: one flat dataclass, whose fields are the command's options and the keys of its YAML file.

Names are those of timm's `train.py` where it has the setting, so that a recipe works with both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import nearest
from ..publishing.licences import LICENCE_RULE, is_licence
from .recipes import find_recipe

DATA, MODEL, MACHINE, RUN = 'Data', 'Model', 'Machine', 'Run'
TRAINING, AUGMENTATION = 'Optimizer and schedule', 'Augmentation and regularization'


def _of(default: Any, group: str, text: str) -> Any:
    return field(default=default, metadata=dict(group=group, help=text))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one run; the help texts say what each field is."""

    data: str = _of('', DATA, 'Folder or tar of images, or torch/NAME, hfds/NAME, wds/FOLDER, hfids/NAME, tfds/NAME.')
    data_dir: str | None = _of(None, DATA, 'Folder where named data sets are stored.')
    dataset_download: bool = _of(False, DATA, 'Download the data set if it is missing.')
    train_split: str = _of('train', DATA, 'Training split.')
    val_split: str = _of('validation', DATA, 'Validation split; held out from the training split if missing.')
    val_fraction: float = _of(0.1, DATA, 'Fraction of each class to hold out.')
    class_map: str | None = _of(None, DATA, 'File with the names of the classes.')
    num_samples: int | None = _of(None, DATA, 'Number of training images, for streams of unknown length.')
    synthetic: int = _of(0, DATA, 'Train on N synthetic images (smoke test).')
    max_bad_images: int = _of(0, DATA, 'Number of unreadable images to skip before the run stops.')

    model: str = _of('', MODEL, 'Architecture, arch.tag or exported folder; must be named.')
    pretrained: bool = _of(True, MODEL, 'Start from pretrained weights.')
    initial_checkpoint: str | None = _of(None, MODEL, 'Start from the weights in this file.')
    num_classes: int | None = _of(None, MODEL, "Number of classes; the data set's by default.")
    img_size: int | None = _of(None, MODEL, "Height and width of the input; the checkpoint's by default.")
    in_chans: int | None = _of(
        None, MODEL, "1 for grey images, 3 for colour, others for TIFF and .npy; the checkpoint's by default."
    )
    gp: str | None = _of(None, MODEL, 'Global pooling: avg, max, avgmax or catavgmax.')
    drop: float | None = _of(None, MODEL, 'Dropout before the classifier.')
    drop_path: float | None = _of(None, MODEL, 'Stochastic depth: drop rate of residual branches.')
    drop_block: float | None = _of(None, MODEL, 'DropBlock rate in the last stages.')
    freeze: str | None = _of(None, MODEL, 'First module to train, as "head" or "layer4"; freeze everything before it.')
    freeze_bn: bool = _of(False, MODEL, 'Freeze the running statistics of all BatchNorms.')
    linear_probe: bool = _of(False, MODEL, 'Train the classifier only, without augmentation.')

    opt: str = _of('adamw', TRAINING, 'Optimizer, by its name in timm.optim.')
    lr: float | None = _of(None, TRAINING, 'Learning rate; overrides --lr-base; 0.001 if neither is given.')
    lr_base: float | None = _of(None, TRAINING, 'Learning rate for --lr-base-size images per step.')
    lr_base_size: int = _of(256, TRAINING, 'Number of images per step that --lr-base is for.')
    lr_base_scale: str = _of('', TRAINING, "Scaling of --lr-base: linear or sqrt; timm's for the optimizer if empty.")
    momentum: float = _of(0.9, TRAINING, 'SGD momentum.')
    weight_decay: float = _of(0.05, TRAINING, 'Weight decay, except for biases and norms.')
    layer_decay: float | None = _of(None, TRAINING, 'Layer-wise decay of the learning rate.')
    epochs: int = _of(20, TRAINING, 'Number of epochs.')
    batch_size: int = _of(64, TRAINING, 'Batch size of one process.')
    grad_accum_steps: int = _of(1, TRAINING, 'Number of batches per optimizer step.')
    clip_grad: float | None = _of(None, TRAINING, 'Gradient clipping threshold.')
    clip_mode: str = _of('norm', TRAINING, 'Gradient clipping mode: norm, value or agc.')
    sched: str = _of('cosine', TRAINING, 'Schedule, as in timm.scheduler: cosine, step, multistep, poly, plateau, …')
    sched_on_updates: bool = _of(True, TRAINING, 'Update the learning rate every step instead of every epoch.')
    warmup_epochs: float = _of(1, TRAINING, 'Warmup epochs, at most half of all epochs.')
    warmup_lr: float = _of(1e-5, TRAINING, 'Initial learning rate of the warmup.')
    min_lr: float = _of(0.0, TRAINING, 'Final learning rate.')
    decay_epochs: float = _of(30, TRAINING, 'Epochs between drops (step).')
    decay_milestones: tuple[int, ...] = _of((30, 60), TRAINING, 'Epochs of the drops (multistep).')
    decay_rate: float = _of(0.1, TRAINING, 'Factor of each drop.')
    cooldown_epochs: int = _of(0, TRAINING, 'Epochs at the final learning rate, after the schedule.')
    patience_epochs: int = _of(10, TRAINING, 'Epochs without improvement before a drop (plateau).')
    model_ema: bool = _of(False, TRAINING, 'Average the weights; evaluate and export the average.')
    model_ema_decay: float = _of(0.9998, TRAINING, 'Decay of the average.')
    early_stopping: int = _of(0, TRAINING, 'Stop after N epochs without improvement; 0 for never.')
    eval_metric: str = _of('top1', TRAINING, 'Metric of the best epoch: top1, top5 or loss.')

    smoothing: float = _of(0.1, AUGMENTATION, 'Label smoothing.')
    bce_loss: bool = _of(False, AUGMENTATION, 'Binary cross-entropy per class instead of softmax.')
    no_aug: bool = _of(False, AUGMENTATION, 'Disable augmentation: resize and crop as in validation.')
    scale: tuple[float, float] = _of((0.35, 1.0), AUGMENTATION, 'Range of the area of random crops.')
    ratio: tuple[float, float] = _of((0.75, 4 / 3), AUGMENTATION, 'Range of the aspect ratio of random crops.')
    crop_padding: int = _of(0, AUGMENTATION, 'Pad by N pixels and crop at random, instead of --scale and --ratio.')
    hflip: float = _of(0.5, AUGMENTATION, 'Probability of a horizontal flip.')
    vflip: float = _of(0.0, AUGMENTATION, 'Probability of a vertical flip.')
    color_jitter: float = _of(0.0, AUGMENTATION, 'Jitter of brightness, contrast, saturation; not with --aa.')
    aa: str | None = _of(None, AUGMENTATION, "AutoAugment policy in timm's notation, such as rand-m9-mstd0.5.")
    train_interpolation: str | None = _of(
        None, AUGMENTATION, "bilinear, bicubic or random; the checkpoint's by default."
    )
    reprob: float = _of(0.0, AUGMENTATION, 'Probability of random erasing.')
    remode: str = _of('pixel', AUGMENTATION, 'Random erasing mode: const, rand or pixel.')
    recount: int = _of(1, AUGMENTATION, 'Maximum number of erased rectangles per image.')
    mixup: float = _of(0.0, AUGMENTATION, 'Mixup alpha; 0 to disable.')
    cutmix: float = _of(0.0, AUGMENTATION, 'CutMix alpha; 0 to disable.')
    mixup_prob: float = _of(1.0, AUGMENTATION, 'Probability of mixup or CutMix per batch.')
    mixup_switch_prob: float = _of(0.5, AUGMENTATION, 'Probability of CutMix where both are enabled.')
    mixup_off_epoch: int = _of(0, AUGMENTATION, 'Epoch from which mixup and CutMix are disabled; 0 for never.')

    device: str | None = _of(None, MACHINE, 'cpu, cuda or cuda:<index>; cuda where available by default.')
    workers: int = _of(2, MACHINE, 'Number of data loading workers per process.')
    amp: bool = _of(False, MACHINE, 'Mixed precision.')
    amp_dtype: str = _of('bfloat16', MACHINE, 'Dtype of mixed precision: bfloat16, or float16 (CUDA only).')
    channels_last: bool = _of(True, MACHINE, 'Channels-last memory format.')
    grad_checkpointing: bool = _of(False, MACHINE, 'Recompute activations: less memory, more time.')
    sync_bn: bool = _of(False, MACHINE, 'BatchNorm statistics over all processes (CUDA only).')
    compile: bool = _of(False, MACHINE, 'Use torch.compile.')

    output: str | None = _of(None, RUN, 'Output folder; runs/MODEL-DATA by default.')
    resume: str | None = _of(None, RUN, '"auto" to resume the run in the output folder.')
    save_every: int = _of(0, RUN, 'Steps between checkpoints within an epoch; 0 for one after each epoch.')
    seed: int = _of(42, RUN, 'Random seed.')
    tensorboard: bool = _of(False, RUN, 'Write TensorBoard events.')
    tag: str = _of('finetuned', RUN, 'Tag of the exported weights.')
    licence: str | None = _of(None, RUN, 'SPDX identifier of the licence of the exported weights.')
    features: str | None = _of(None, RUN, 'Write the embeddings of all images into this folder; no training.')
    features_format: str = _of('safetensors', RUN, 'Format of the embeddings: safetensors or npy.')

    def __post_init__(self) -> None:
        for rule, holds, names in _RULES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise ValueError(f'{name} must be {rule}, got {value!r}.')

    def changed(self, **settings: Any) -> 'Config':
        """A copy with other settings."""
        return dataclasses.replace(self, **settings)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, in the types of YAML."""
        return {name: [*value] if isinstance(value, tuple) else value for name, value in vars(self).items()}


def read_settings(name: str) -> dict[str, Any]:
    """Read the settings in a YAML file or a recipe of the package.

    Args:
        name: Path of the file, or name of the recipe.

    Raises:
        ValueError: If there is no such file or recipe, it is not YAML, or a key or value is invalid.
    """
    path = Path(name) if Path(name).is_file() else find_recipe(name)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds no settings: write one "name: value" per line.')
    return checked(content, str(path))


def checked(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Settings as read from YAML, by field name and converted to the types of the fields.

    Raises:
        ValueError: If a key is unknown or a value has another type.
    """
    fields = {item.name: item for item in dataclasses.fields(Config)}
    found = {}
    for key, value in settings.items():
        name = str(key).replace('-', '_')
        if name not in fields:
            raise ValueError(f'{where}: unknown setting {key}.{nearest(name, fields)}')
        annotation = fields[name].type
        kind = annotation.__name__ if annotation in (bool, int, float, str) else str(annotation)
        found[name] = _converted(name, kind, value, where)
    return found


def _converted(name: str, kind: str, value: Any, where: str) -> Any:
    """A value in the type of an annotation such as 'int | None'; numbers may be text, as YAML reads 1e-3."""
    if value is None and 'None' in kind:
        return None
    plain = kind.removesuffix(' | None')
    if plain.startswith('tuple') and isinstance(value, list | tuple):
        member = 'int' if 'int' in plain else 'float'
        return tuple(_converted(name, member, item, where) for item in value)
    if isinstance(value, bool):
        if plain == 'bool':
            return value
    elif plain == 'str' and isinstance(value, str | int | float):
        return str(value)
    elif plain in ('int', 'float'):
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            if plain == 'float':
                return number
            if number.is_integer():
                return int(number)
    raise ValueError(f'{where}: {name} must be of type {plain}, got {value!r}.')


_RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ('from 0 to 1', lambda value: 0 <= value <= 1, ('drop', 'drop_path', 'drop_block', 'smoothing', 'hflip', 'vflip')),
    ('from 0 to 1', lambda value: 0 <= value <= 1, ('reprob', 'mixup_prob', 'mixup_switch_prob')),
    ('above 0', lambda value: value > 0, ('lr', 'lr_base', 'lr_base_size', 'epochs', 'batch_size', 'decay_rate')),
    ('above 0', lambda value: value > 0, ('grad_accum_steps', 'recount', 'in_chans')),
    ('at least 0', lambda value: value >= 0, ('weight_decay', 'workers', 'save_every', 'early_stopping', 'seed')),
    ('at least 0', lambda value: value >= 0, ('max_bad_images', 'synthetic', 'mixup', 'cutmix', 'crop_padding')),
    ('at least 0', lambda value: value >= 0, ('warmup_epochs', 'cooldown_epochs')),
    ('above 0 and below 1', lambda value: 0 < value < 1, ('val_fraction', 'model_ema_decay')),
    ('two ascending numbers above 0', lambda value: len(value) == 2 and 0 < value[0] <= value[1], ('scale', 'ratio')),
    ('top1, top5 or loss', ('top1', 'top5', 'loss').__contains__, ('eval_metric',)),
    ('bfloat16 or float16', ('bfloat16', 'float16').__contains__, ('amp_dtype',)),
    ('norm, value or agc', ('norm', 'value', 'agc').__contains__, ('clip_mode',)),
    ('const, rand or pixel', ('const', 'rand', 'pixel').__contains__, ('remode',)),
    ('safetensors or npy', ('safetensors', 'npy').__contains__, ('features_format',)),
    (LICENCE_RULE, is_licence, ('licence',)),
    ('linear, sqrt or empty', ('linear', 'sqrt', '').__contains__, ('lr_base_scale',)),
)
