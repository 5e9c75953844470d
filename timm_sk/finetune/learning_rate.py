"""The learning rate of a run, from its settings and the number of pictures that make a step."""

from ..world import World
from .config import Config

DEFAULT_LR = 1e-3  # AdamW's, which is the default optimizer
_SCALED_BY_ROOT = ('ada', 'lamb')  # parts of the names of optimizers, as timm's train.py has them


def resolve_lr(config: Config, global_batch: int) -> float:
    """The learning rate at its highest, as timm's `train.py` resolves it.

    `lr` where it is given. Else `lr_base` times the number of pictures in a step over `lr_base_size`, or times the
    root of that ratio. 0.001 where neither is given.

    Args:
        config: The settings.
        global_batch: Pictures that make one step of the optimizer: a batch, times the processes, times the batches
            whose gradients are accumulated.

    Raises:
        ValueError: If no picture makes a step.
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


def pictures_per_step(config: Config, world: World) -> int:
    """Pictures that make one step of the optimizer, in all processes together."""
    return config.batch_size * world.size * config.grad_accum_steps
