"""The models to choose from; a mark in the list says which ones cannot be loaded, and why."""

from contextlib import suppress

from huggingface_hub import constants

from ..checkpoints import CHECKPOINTS, Checkpoint
from ..errors import TimmSkError
from ..pretrained import Store
from ..pretrained.hf_hub import is_cached

MANUAL, OFFLINE = 'manual download', 'offline'


def offered(first: str) -> list[str]:
    """The names to choose from: the first one, the bundled checkpoints, and the other classifiers of the table.

    Those whose weights are unavailable come last.
    """
    rows = [row for row in CHECKPOINTS.values() if row.has_classifier]
    rows.sort(key=lambda row: (row.bundled is None, why_unavailable(row.name) is not None))
    return list(dict.fromkeys([first, *(row.name for row in rows)]))


def choices(names: list[str]) -> list[tuple[str, str]]:
    """Labels and values of a list of names."""
    return [(f'{name} ({why})' if (why := why_unavailable(name)) else name, name) for name in names]


def why_unavailable(name: str) -> str | None:
    """`MANUAL` or `OFFLINE` if the weights of a checkpoint are not stored and cannot be downloaded, else None."""
    row = CHECKPOINTS.get(name)
    if row is None or row.bundled or _is_stored(row):
        return None
    if all(source.kind == 'manual' for source in row.sources):
        return MANUAL
    return OFFLINE if constants.HF_HUB_OFFLINE else None


def _is_stored(row: Checkpoint) -> bool:
    """Whether the weights are in the local store, or in the cache of the Hub's client."""
    with suppress(TimmSkError):  # a damaged store, which loading the model reports
        if Store().origin(row.name):
            return True
    return any(is_cached(source) for source in row.sources if source.kind == 'hub')
