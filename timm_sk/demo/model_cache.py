"""The models of the page: each is loaded once, and the most recently used ones are kept."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..attention import selecting_units
from ..factory import ready_model
from ..inference.prediction import class_names
from ..models.inputs import preprocessing

MAX_MODELS = 4


@dataclass(eq=False)
class PageModel:
    """A model with its class names and preprocessing.

    Attributes:
        model: Model in eval mode, on its device.
        lock: Lock to hold while the model runs: its attention is recorded by hooks.
    """

    model: Any
    lock: Lock = field(default_factory=Lock)

    @cached_property
    def class_names(self) -> list[str]:
        return class_names(self.model)

    @cached_property
    def selects(self) -> bool:
        """Whether it has units with attention."""
        try:
            return bool(selecting_units(self.model))
        except ValueError:
            return False

    @cached_property
    def transform(self) -> Callable[[Any], Any]:
        """The preprocessing of the checkpoint: a PIL image in, a tensor [C, H, W] out."""
        return timm.data.create_transform(**preprocessing(self.model), is_training=False)

    def as_image(self, x: Tensor) -> Image.Image:
        """The image of a transformed tensor [C, H, W]: resized and cropped, without the normalization."""
        config = preprocessing(self.model)
        mean, std = (torch.tensor(config[name])[:, None, None] for name in ('mean', 'std'))
        return to_pil_image((x * std + mean).clamp(0, 1).mul(255).round().byte())


class ModelCache:
    """A bounded cache of models that loads each of them once, however many threads ask for it."""

    def __init__(self, max_models: int = MAX_MODELS):
        self._max_models = max_models
        self._models: OrderedDict[str, PageModel] = OrderedDict()
        self._loading: dict[str, Lock] = {}
        self._lock = Lock()

    def get(self, name: str) -> PageModel:
        """Return a model; if it has to be loaded, the least recently used one is dropped.

        Raises:
            ValueError: As `timm_sk.factory.ready_model`; the next call tries again.
        """
        with self._lock:
            loading = self._loading.setdefault(name, Lock())
        with loading:  # other models can be loaded meanwhile
            with self._lock:
                found = self._models.pop(name, None)
            found = found or PageModel(ready_model(name))
            with self._lock:
                self._models[name] = found  # as the last one
                while len(self._models) > self._max_models:
                    self._models.popitem(last=False)
            return found
