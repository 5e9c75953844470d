"""Models that are ready to call: created, loaded, moved and in eval mode."""

from collections.abc import Callable
from functools import partial
from json import JSONDecodeError
from pickle import UnpicklingError
from typing import Any

import timm
import timm.data
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import Compose

from . import registry
from .data import input_transform
from .data.images import to_channels
from .devices import open_device
from .errors import DownloadError, UnloadableModelError, message_of
from .inference.warmup import warm_up
from .models.inputs import image_size, preprocessing
from .pretrained import require_hub

ImageTransform = Callable[[Image.Image], Tensor]  # [C, H, W]

_LOAD_ERRORS = (  # of timm, on a folder or file of others
    *(OSError, RuntimeError, KeyError, TypeError, AttributeError),
    *(JSONDecodeError, UnpicklingError, SafetensorError, DownloadError),
)


def load(
    name: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    pretrained: bool = True,
    **kwargs: Any,
) -> tuple[nn.Module, ImageTransform]:
    """Load a model that is ready to call, and the preprocessing that its checkpoint was evaluated with.

    Args:
        name: Architecture, for its default checkpoint, `arch.tag`, the folder of an exported model, or another name
            that `timm.create_model` takes, such as `hf-hub:ORG/NAME`.
        device: Device of the model; None for the best device of this machine: cuda, then mps, then cpu.
        dtype: Floating-point type of parameters and buffers, such as `torch.bfloat16`; None for float32.
        pretrained: Load weights.
        **kwargs: Further arguments of `timm.create_model`: `num_classes` (if it differs from the checkpoint's, the
            classifier is new and untrained), `in_chans`, `features_only`, ...

    Returns:
        The model in eval mode, and its transform. The transform makes a float32 tensor [C, H, W] on the CPU of a PIL
        image of any mode: it turns the image upright by its EXIF orientation, converts it to the model's channels,
        resizes, crops and normalizes it.

    Raises:
        UnknownModelError: If timm's registry has no such name.
        NoWeightsError: If `pretrained` and the checkpoint has no weights.
        UnloadableModelError: If its weights or its folder cannot be read.
        ValueError: If this machine does not have the device.

    Examples:
        >>> model, transform = timm_sk.load('skresnet34', device='cpu')
        >>> logits = model(transform(Image.open('cat.jpg'))[None])  # [1, 1000]
    """
    model = ready_model(name, pretrained, device=device, dtype=dtype, **kwargs)
    return model, _image_transform(preprocessing(model, any_channels=True))


def ready_model(
    name: str,
    pretrained: bool = True,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a model that is ready to call, in eval mode.

    On CUDA a net of this package runs once on a blank image of its checkpoint's size, which loads and compiles its
    kernels. Arguments and errors are those of `load`; `channels_last` None is channels last on cuda and contiguous
    elsewhere.
    """
    registry.require_model(name)
    target = open_device(device)
    model = create_model(name, pretrained, **kwargs)
    if channels_last is None:
        channels_last = target.type == 'cuda'
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device=target, dtype=dtype, memory_format=memory_format).eval()
    if target.type == 'cuda':
        _warm_up_ours(model, memory_format)
    return model


def create_model(name: str, pretrained: bool, **kwargs: Any) -> Any:
    """`timm.create_model` with the errors of `ready_model`, and without a dozen attempts if the Hub does not answer."""
    found = registry.require_model(name)
    source, repository = timm.models.parse_model_name(found)
    cfg = None if source else timm.models.get_pretrained_cfg(found)
    ours = registry.architectures()
    try:
        if source == 'hf-hub' or (pretrained and cfg and cfg.hf_hub_id and cfg.architecture not in ours):
            repository, weights = (cfg.hf_hub_id, cfg.hf_hub_filename) if cfg else (repository, None)
            files = [weights or 'model.safetensors', 'pytorch_model.bin'] if pretrained else ['config.json']
            require_hub(repository, *files, cache_dir=kwargs.get('cache_dir'))
        return timm.create_model(found, pretrained=pretrained, **kwargs)
    except _LOAD_ERRORS as error:
        if isinstance(error, TypeError | AttributeError) and not source:
            raise  # of the caller's arguments
        kind = '' if isinstance(error, OSError | DownloadError) else f'{type(error).__name__}: '
        is_unsafe = 'weights_only' in str(error)  # advice to execute what the file holds
        reason = 'a file of weights is damaged, or holds more than tensors.' if is_unsafe else kind + message_of(error)
        raise UnloadableModelError(f'{name} cannot be loaded: {reason}') from error


def _warm_up_ours(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Warm up a net of this package; all of them take images of their checkpoint's size, whatever their arguments."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    size = image_size(model)
    if size is None or cfg.get('architecture') not in registry.architectures():
        return
    weight = next(model.parameters())
    x = torch.zeros(1, *size, dtype=weight.dtype, device=weight.device)
    warm_up(model, x.contiguous(memory_format=memory_format))


def transforms(name: str) -> ImageTransform:
    """The preprocessing that a checkpoint was evaluated with: a PIL image in, a tensor [3, H, W] out.

    The image may have any mode. It is turned upright by its EXIF orientation, transparent parts become white and 16-bit
    greys are scaled to 8 bits, as in `timm-sk predict`. Opening the file, and with it refusing damaged or oversized
    ones, is left to the caller.

    Args:
        name: Architecture (its default checkpoint) or `arch.tag`.

    Raises:
        UnknownModelError: If timm's registry has no such name.
    """
    cfg = registry.pretrained_cfg(name)
    return _image_transform(timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()))


def _image_transform(inputs: dict[str, Any]) -> Any:
    """The transform of PIL images that a result of `timm_sk.models.inputs.preprocessing` describes."""
    return Compose([partial(to_channels, channels=inputs['input_size'][0]), *input_transform(**inputs).transforms])
