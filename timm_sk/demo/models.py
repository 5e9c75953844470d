"""The models of the page: each loaded once, the last ones kept."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import timm.data

from ..attention import selecting_units
from ..checkpoints import CHECKPOINTS
from ..factory import ready_model
from ..inference.prediction import class_names
from ..models.inputs import preprocessing

MOST_KEPT = 4


@dataclass(eq=False)
class PageModel:
    """A model and what the page needs beside it.

    Attributes:
        name: As it was chosen.
        model: In eval mode, on its device.
        lock: To be held while it runs: its attention is recorded by hooks.
    """

    name: str
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
        """The preprocessing of the model's checkpoint: a PIL picture in, a tensor [C, H, W] out."""
        return timm.data.create_transform(**preprocessing(self.model), is_training=False)


class Models:
    """A bounded cache of models that loads each of them once, however many ask for it at a time."""

    def __init__(self, most_kept: int = MOST_KEPT):
        self._most_kept = most_kept
        self._kept: OrderedDict[str, PageModel] = OrderedDict()
        self._loading: dict[str, Lock] = {}
        self._lock = Lock()

    def get(self, name: str) -> PageModel:
        """The model, loaded if it is not kept; the one that was used longest ago goes.

        Raises:
            ValueError: As `timm_sk.factory.ready_model`; the next call tries again.
        """
        with self._lock:
            if found := self._find(name):
                return found
            loading = self._loading.setdefault(name, Lock())
        with loading:  # others load their models meanwhile
            with self._lock:
                if found := self._find(name):
                    return found
            loaded = PageModel(name, ready_model(name))
            with self._lock:
                self._kept[name] = loaded
                while len(self._kept) > self._most_kept:
                    self._kept.popitem(last=False)
            return loaded

    def _find(self, name: str) -> PageModel | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)


def offered(first: str) -> list[str]:
    """The names to choose from: the first one, what ships with the package, and the other checkpoints of the table."""
    rows = [row for row in CHECKPOINTS.values() if row.sources]
    bundled = [row.name for row in rows if row.bundled]
    return list(dict.fromkeys([first, *bundled, *(row.name for row in rows)]))
