"""The models of the page: each is loaded once, and the most recently used ones are kept."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..factory import ImageTransform, load
from ..inference.prediction import class_names
from ..models.inputs import preprocessing

MAX_MODELS = 4


@dataclass(eq=False)
class PageModel:
    """A model with its preprocessing, as `timm_sk.load` returns them, and its class names.

    Raises:
        ValueError: If the model does not take images of 1 or 3 channels.
    """

    model: Any
    transform: ImageTransform
    # held while the model runs: its attention is recorded by hooks
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        config = preprocessing(self.model)
        self._mean, self._std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))

    @cached_property
    def class_names(self) -> list[str]:
        return class_names(self.model)

    def as_image(self, x: Tensor) -> Image.Image:
        """The image of a transformed tensor [C, H, W]: resized and cropped, without the normalization."""
        return to_pil_image((x * self._std + self._mean).clamp(0, 1).mul(255).round().byte())


class ModelCache:
    """A bounded cache of models that loads each of them once, however many threads ask for it."""

    def __init__(self, max_models: int = MAX_MODELS) -> None:
        self._loading: dict[str, Lock] = {}
        self._load = lru_cache(max_models)(lambda name: PageModel(*load(name)))

    def get(self, name: str) -> PageModel:
        """Return a model; if it has to be loaded, the least recently used one is dropped.

        Raises:
            ValueError: As `timm_sk.load`; the next call tries again.
        """
        with self._loading.setdefault(name, Lock()):  # other models can be loaded meanwhile
            return self._load(name)
