"""The settings of a run: one flat dataclass, whose fields are the command's flags and the keys of its YAML.

Names are those of timm's `train.py` where it has the setting, so that a recipe drives both.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .recipes import find_recipe


def _of(default: Any, group: str, text: str) -> Any:
    return field(default=default, metadata=dict(group=group, help=text))


DATA, MODEL, TRAINING, AUGMENTATION, MACHINE, RUN = (
    'Data',
    'Model',
    'Optimizer and schedule',
    'Augmentation and regularization',
    'Machine',
    'Run',
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run's settings; each field's meaning is its help text."""

    data: str = _of('', DATA, 'Folder or tar of images, or torch/NAME, hfds/NAME, wds/FOLDER, hfids/NAME, tfds/NAME.')
    data_dir: str | None = _of(None, DATA, 'Where a data set that has a name is kept.')
    dataset_download: bool = _of(False, DATA, 'Download the data set if it is missing.')
    train_split: str = _of('train', DATA, 'Split to train on.')
    val_split: str = _of('validation', DATA, 'Split that judges; cut from the former if there is none.')
    val_fraction: float = _of(0.1, DATA, 'Share of the images to cut off for that.')
    class_map: str | None = _of(None, DATA, 'File that lists the names of the classes.')
    num_samples: int | None = _of(None, DATA, 'Training images of a stream that does not say so.')
    synthetic: int = _of(0, DATA, 'Draw so many images of shapes instead: to try a run.')
    max_bad_images: int = _of(0, DATA, 'Images that cannot be read to skip before the run stops.')

    model: str = _of('sknet_atto.digits', MODEL, 'Architecture or arch.tag to begin with.')
    pretrained: bool = _of(True, MODEL, 'Begin with its weights.')
    initial_checkpoint: str | None = _of(None, MODEL, 'Begin with the weights in this file.')
    num_classes: int | None = _of(None, MODEL, 'How many classes there should be.')
    img_size: int | None = _of(None, MODEL, "Height and width of the images; the checkpoint's if not given.")
    in_chans: int | None = _of(None, MODEL, "1 for grey images, 3 for colour; the checkpoint's if not given.")
    gp: str | None = _of(None, MODEL, 'Pooling before the classifier: avg, max, avgmax, catavgmax.')
    drop: float | None = _of(None, MODEL, 'Dropout before the classifier.')
    drop_path: float | None = _of(None, MODEL, 'Stochastic depth: how often a residual branch is dropped.')
    drop_block: float | None = _of(None, MODEL, 'DropBlock rate in the last stages.')
    freeze: str | None = _of(None, MODEL, 'Train from this part on, as "head" or "layer4"; what lies below stays.')
    freeze_bn: bool = _of(False, MODEL, 'Keep the running statistics of all BatchNorms.')
    linear_probe: bool = _of(False, MODEL, 'Train the classifier alone, on the images as they are.')

    opt: str = _of('adamw', TRAINING, "One of timm.optim's.")
    lr: float | None = _of(None, TRAINING, 'Learning rate; goes before --lr-base, and is 0.001 if neither is given.')
    lr_base: float | None = _of(None, TRAINING, 'Learning rate for a step of --lr-base-size images; grows with it.')
    lr_base_size: int = _of(256, TRAINING, 'How many images that is meant for.')
    lr_base_scale: str = _of('', TRAINING, 'How it grows: linear or sqrt; by the optimizer, as timm does, if empty.')
    momentum: float = _of(0.9, TRAINING, 'Of SGD and its kin.')
    weight_decay: float = _of(0.05, TRAINING, 'Of all but biases and norms.')
    layer_decay: float | None = _of(None, TRAINING, 'Factor of the learning rate from each layer to the one below.')
    epochs: int = _of(20, TRAINING, 'Epochs of the schedule.')
    batch_size: int = _of(64, TRAINING, 'Images in a batch of one process.')
    grad_accum_steps: int = _of(1, TRAINING, 'Batches whose gradients make one step.')
    clip_grad: float | None = _of(None, TRAINING, 'Clip gradients at this.')
    clip_mode: str = _of('norm', TRAINING, 'norm, value or agc.')
    sched: str = _of('cosine', TRAINING, "One of timm.scheduler's: cosine, step, multistep, poly, constant, plateau, …")
    sched_on_updates: bool = _of(True, TRAINING, 'Change the learning rate at each step, not at each epoch.')
    warmup_epochs: float = _of(1, TRAINING, 'Epochs in which it rises, at most half of all.')
    warmup_lr: float = _of(1e-5, TRAINING, 'Where it rises from.')
    min_lr: float = _of(0.0, TRAINING, 'Where it falls to.')
    decay_epochs: float = _of(30, TRAINING, 'Epochs between the drops of step.')
    decay_milestones: tuple[int, ...] = _of((30, 60), TRAINING, 'Epochs of the drops of multistep.')
    decay_rate: float = _of(0.1, TRAINING, 'Factor of a drop.')
    cooldown_epochs: int = _of(0, TRAINING, 'Epochs at the end with the least learning rate.')
    patience_epochs: int = _of(10, TRAINING, 'Epochs without improvement before plateau drops it.')
    model_ema: bool = _of(False, TRAINING, 'Keep averaged weights, judge and export those.')
    model_ema_decay: float = _of(0.9998, TRAINING, 'How slowly they follow.')
    early_stopping: int = _of(0, TRAINING, 'Stop after so many epochs without improvement; 0 for never.')
    eval_metric: str = _of('top1', TRAINING, 'What the best epoch is judged by: top1, top5 or loss.')

    smoothing: float = _of(0.1, AUGMENTATION, 'Label smoothing.')
    bce_loss: bool = _of(False, AUGMENTATION, 'Binary cross-entropy per class instead of softmax.')
    no_aug: bool = _of(False, AUGMENTATION, 'Resize and crop as in validation, no more.')
    scale: tuple[float, float] = _of((0.35, 1.0), AUGMENTATION, 'Least and greatest share of an image in a crop.')
    ratio: tuple[float, float] = _of((0.75, 4 / 3), AUGMENTATION, "Least and greatest of a crop's width over height.")
    hflip: float = _of(0.5, AUGMENTATION, 'How often images are mirrored.')
    vflip: float = _of(0.0, AUGMENTATION, 'How often they are turned upside down.')
    color_jitter: float = _of(0.0, AUGMENTATION, 'Jitter of brightness, contrast, saturation; not with --aa.')
    aa: str | None = _of(None, AUGMENTATION, "AutoAugment's policy as timm writes it, such as rand-m9-mstd0.5.")
    train_interpolation: str | None = _of(None, AUGMENTATION, "bilinear, bicubic or random; the checkpoint's.")
    reprob: float = _of(0.0, AUGMENTATION, 'How often a rectangle is erased.')
    remode: str = _of('pixel', AUGMENTATION, 'Filled with: const, rand or pixel.')
    recount: int = _of(1, AUGMENTATION, 'Most rectangles in an image.')
    mixup: float = _of(0.0, AUGMENTATION, "Alpha of mixup's distribution; 0 for none.")
    cutmix: float = _of(0.0, AUGMENTATION, "Alpha of cutmix's.")
    mixup_prob: float = _of(1.0, AUGMENTATION, 'Share of the batches that are mixed.')
    mixup_switch_prob: float = _of(0.5, AUGMENTATION, 'How often by cutmix where both are on.')
    mixup_off_epoch: int = _of(0, AUGMENTATION, 'Epoch from which nothing is mixed; 0 for never.')

    device: str | None = _of(None, MACHINE, 'cpu, cuda or cuda:1; the best one if not given.')
    workers: int = _of(2, MACHINE, 'Processes that load images, for each that trains.')
    amp: bool = _of(False, MACHINE, 'Mixed precision.')
    amp_dtype: str = _of('bfloat16', MACHINE, 'In bfloat16, or on CUDA float16.')
    channels_last: bool = _of(True, MACHINE, 'Memory format.')
    grad_checkpointing: bool = _of(False, MACHINE, 'Recompute activations: less memory, more time.')
    sync_bn: bool = _of(False, MACHINE, 'Running statistics over all processes; on CUDA alone.')
    compile: bool = _of(False, MACHINE, 'torch.compile.')

    output: str | None = _of(None, RUN, 'Folder of the run; runs/MODEL-DATA if not given.')
    resume: str | None = _of(None, RUN, '"auto" to go on where the run in the folder stopped.')
    save_every: int = _of(0, RUN, 'Steps between checkpoints within an epoch; 0 for one after each epoch.')
    seed: int = _of(42, RUN, 'Of everything that is drawn.')
    tensorboard: bool = _of(False, RUN, "Write TensorBoard's events too.")
    tag: str = _of('finetuned', RUN, 'Name of the exported weights.')
    licence: str | None = _of(None, RUN, "SPDX identifier of the new weights' licence.")
    features: str | None = _of(None, RUN, 'Train nothing: write the embeddings of all images into this folder.')
    features_format: str = _of('safetensors', RUN, 'safetensors or npy.')

    def __post_init__(self) -> None:
        for rule, holds in _rules(self).items():
            if not holds:
                name = rule.partition(' ')[0]
                raise ValueError(f'{rule}, got {getattr(self, name)!r}.')

    def changed(self, **settings: Any) -> 'Config':
        """The same with other settings."""
        return dataclasses.replace(self, **settings)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, as YAML has them."""
        return {name: [*value] if isinstance(value, tuple) else value for name, value in vars(self).items()}


def read_settings(name: str) -> dict[str, Any]:
    """The settings of a YAML file, or of a recipe that ships with the package.

    Args:
        name: A path, or a recipe's name.

    Raises:
        ValueError: If there is no such file or recipe, it is no YAML, or has a key that is no setting.
    """
    path = Path(name) if Path(name).is_file() else find_recipe(name)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds no settings: write one "name: value" a line.')
    return checked(content, str(path))


def checked(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Settings of the right types, by the names of fields.

    Args:
        settings: From YAML.
        where: What to call their place in an error.

    Raises:
        ValueError: If a key is no setting, or a value of another type.
    """
    fields = {item.name: item for item in dataclasses.fields(Config)}
    found = {}
    for key, value in settings.items():
        name = str(key).replace('-', '_')
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise ValueError(f'{where}: there is no setting {key}' + (f', but {near[0]}.' if near else '.'))
        found[name] = _converted(name, _kind(fields[name].type), value, where)
    return found


def _kind(annotation: Any) -> str:
    """An annotation as it is written: 'int', 'float | None', 'tuple[int, ...]'."""
    return annotation.__name__ if annotation in (bool, int, float, str) else str(annotation)


def _converted(name: str, kind: str, value: Any, where: str) -> Any:
    """A value as the field's annotation wants it; numbers may be written as text, as YAML reads 1e-3."""
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
        try:
            number = float(value)
            if plain == 'float' or number == int(number):
                return number if plain == 'float' else int(number)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ValueError(f'{where}: {name} must be of type {plain}, got {value!r}.')


def _rules(config: Config) -> dict[str, bool]:
    """What must hold, as a sentence that begins with the setting's name, and whether it does."""
    shares = (
        'drop',
        'drop_path',
        'drop_block',
        'smoothing',
        'hflip',
        'vflip',
        'reprob',
        'mixup_prob',
        'mixup_switch_prob',
    )
    positive = (
        'lr',
        'lr_base',
        'lr_base_size',
        'epochs',
        'batch_size',
        'grad_accum_steps',
        'recount',
        'decay_rate',
    )
    not_negative = (
        'weight_decay',
        'workers',
        'save_every',
        'early_stopping',
        'max_bad_images',
        'synthetic',
        'mixup',
        'cutmix',
        'warmup_epochs',
        'cooldown_epochs',
        'seed',
    )
    rules = {f'{name} must be from 0 to 1': 0 <= (getattr(config, name) or 0) <= 1 for name in shares}
    rules |= {
        f'{name} must be above 0': getattr(config, name) is None or getattr(config, name) > 0 for name in positive
    }
    rules |= {f'{name} must not be negative': getattr(config, name) >= 0 for name in not_negative}
    rules |= {
        'val_fraction must be above 0 and below 1': 0 < config.val_fraction < 1,
        'eval_metric must be top1, top5 or loss': config.eval_metric in ('top1', 'top5', 'loss'),
        'amp_dtype must be bfloat16 or float16': config.amp_dtype in ('bfloat16', 'float16'),
        'lr_base_scale must be linear, sqrt or empty': config.lr_base_scale in ('linear', 'sqrt', ''),
        'clip_mode must be norm, value or agc': config.clip_mode in ('norm', 'value', 'agc'),
        'remode must be const, rand or pixel': config.remode in ('const', 'rand', 'pixel'),
        'features_format must be safetensors or npy': config.features_format in ('safetensors', 'npy'),
        'in_chans must be 1 or 3': config.in_chans in (None, 1, 3),
        'model_ema_decay must be above 0 and below 1': 0 < config.model_ema_decay < 1,
        'scale must be two ascending shares above 0': 0 < config.scale[0] <= config.scale[-1]
        and len(config.scale) == 2,
        'ratio must be two ascending numbers above 0': 0 < config.ratio[0] <= config.ratio[-1]
        and len(config.ratio) == 2,
    }
    return rules
