"""The architectures and checkpoints by name, and the facts about a checkpoint."""

from dataclasses import dataclass

from .checkpoints import Checkpoint, descriptions
from .models.costs import cost
from .pretrained import Origin, Store
from .pretrained.lookup import find_row, search_rows
from .publishing.local import TRUST, state_of


@dataclass(frozen=True, kw_only=True)
class CheckpointDescription(Checkpoint):
    """A row of the table of checkpoints, with the cost of its architecture and where its weights are.

    `sources` have the hashes, and `mean`, `std`, `interpolation` and `crop_pct` the preprocessing. `str()` gives all
    facts as text, a line each.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of convolutions and matrix products for one image of `input_size`.
        state: Where the weights are: 'bundled', 'stored', 'cached', 'on the hub', 'on the web' or 'needs a file'.
        stored: The source of the weights in the local store; None if they are not in it.
    """

    params: int
    macs: int
    state: str
    stored: Origin | None = None

    def facts(self) -> dict[str, str]:
        """All facts as text, by their titles."""
        facts = descriptions.describe(self)
        facts |= {'size': f'{self.params:,} parameters, {self.macs:,} multiply-adds', 'state': self.state}
        if origin := self.stored:
            facts['stored from'] = f'{origin.kind} {origin.location or origin.filename}, {origin.date}'
            facts['trust'] = f'{TRUST[origin.pinned]}; sha256 of the original {origin.sha256}'
        return facts

    def __str__(self) -> str:
        return '\n'.join(f'{title:14} {text}' for title, text in self.facts().items())


def list_models(filter: str = '', *, pretrained: bool = False) -> list[str]:
    """The names of the architectures, which `timm_sk.load` and `timm.create_model` take.

    Args:
        filter: Part of an `arch.tag`, or a pattern such as `sk*` for it or for the architecture.
        pretrained: Only those with pretrained weights; `list_checkpoints` has the names of the weights.

    Returns:
        The names, family by family; empty if none matches.

    Examples:
        >>> timm_sk.list_models('sknet*', pretrained=True)
    """
    return list(dict.fromkeys(row.arch for row in search_rows(filter) if row.sources or not pretrained))


def list_checkpoints(filter: str = '') -> list[str]:
    """The names of the pretrained weights, `arch.tag`; of each architecture the default first.

    Args:
        filter: Part of the name, or a pattern such as `resnest50d.*` or `sk*`.

    Returns:
        The names, family by family; empty if none matches.

    Examples:
        >>> timm_sk.list_checkpoints('skresnet34')  # ['skresnet34.ra_in1k', 'skresnet34_mindcv.mindcv_in1k']
    """
    return [row.name for row in search_rows(filter) if row.sources]


def describe_checkpoint(name: str) -> CheckpointDescription:
    """The facts about pretrained weights: licence, hashes, metrics, preprocessing, cost, where they are.

    Args:
        name: `arch.tag`, or an architecture for its default checkpoint.

    Raises:
        UnknownModelError: If there is no such checkpoint; the message suggests similar names.
        NoWeightsError: If the architecture has no weights.
        CorruptCheckpointError: If the record in the local store is unreadable.

    Examples:
        >>> checkpoint = timm_sk.describe_checkpoint('skresnet34')
        >>> checkpoint.licence, checkpoint.top1, checkpoint.sources[0].published_hash
        >>> print(checkpoint)
    """
    row, store = find_row(name), Store()
    params, macs = cost(row)
    stored = store.origin(row.name)
    return CheckpointDescription(**vars(row), params=params, macs=macs, state=state_of(row, store), stored=stored)
