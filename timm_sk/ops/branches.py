"""The branches of a unit as one value: the tensors, and what `fuse` and `select` may know about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from . import reference


class Epilogue(NamedTuple):
    """Deferred bias and activation of convolution outputs; the kernels apply them as they read.

    Attributes:
        biases: [C] for each branch.
        activation: '', 'relu' or 'relu6'.
    """

    biases: Sequence[Tensor]
    activation: str


NO_EPILOGUE = Epilogue((), '')


class BatchNormReLUState(NamedTuple):
    """Inputs from which a backward pass recomputes `relu(batch_norm(source))`.

    Attributes:
        source: Input of the norm [B, C, H, W].
        weight: Weight of the norm [C], or None.
        bias: Bias of the norm [C], or None.
        mean: [C], of the batch in train mode, else the running mean.
        variance: [C], of the batch in train mode, else the running variance.
        inverse_std: [C], 1 / sqrt(variance + eps) in train mode.
        eps: Epsilon of the norm.
        training: Whether mean and variance are those of the batch.
    """

    source: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    inverse_std: Tensor
    eps: float
    training: bool

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors among the fields, which come first."""
        return self[:-2]

    @property
    def constants(self) -> tuple[float, bool]:
        """The other fields."""
        return self[-2:]

    def normalize(self) -> Tensor:
        """Output of the norm [B, C, H, W]; where a graph is recorded, batch statistics are part of it."""
        if self.training and torch.is_grad_enabled():
            return F.batch_norm(self.source, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(self.source, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)


@dataclass(frozen=True)
class Branches:
    """M = len(tensors) * R branches [B, C, H, W].

    Attributes:
        tensors: [B, R * C, H, W] each: R branches packed in the channels.
        radix: R.
        epilogue: Bias and activation that are not applied yet, or None.
        states: Inputs from which to recompute each tensor, so that autograd need not save it for `select`; or ().
        private: No module and no hook holds the tensors, so that `select` may write into them.
        observed: Hooks may look at autograd's graph, which must have ordinary PyTorch operations.
    """

    tensors: Sequence[Tensor]
    radix: int = 1
    epilogue: Epilogue | None = None
    states: Sequence[BatchNormReLUState] = ()
    private: bool = False
    observed: bool = False

    def unpack(self) -> list[Tensor]:
        """M tensors [B, C, H, W], with the epilogue applied."""
        if self.epilogue is None:
            return reference.unpack(self.tensors, self.radix)
        return reference.apply_epilogue(self.tensors, *self.epilogue)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unpack())


def join(parts: Sequence[Branches]) -> Any:
    """Concatenate the branches of several values of one radix; a list of M tensors when `torch.fx` traces."""
    if isinstance(parts[0].tensors, torch.fx.Proxy):  # a list whose length is not known
        return parts[0].tensors
    if isinstance(parts[0].tensors[0], torch.fx.Proxy):
        return [branch for part in parts for branch in part.unpack()]
    epilogues = [part.epilogue for part in parts if part.epilogue is not None]
    if epilogues and len({part.epilogue and part.epilogue.activation for part in parts}) > 1:
        return Branches([branch for part in parts for branch in part.unpack()])
    biases = [bias for epilogue in epilogues for bias in epilogue.biases]
    return Branches(
        [tensor for part in parts for tensor in part.tensors],
        parts[0].radix,
        Epilogue(biases, epilogues[0].activation) if epilogues else None,
        [state for part in parts for state in part.states] if all(part.states for part in parts) else (),
        private=all(part.private for part in parts),
        observed=any(part.observed for part in parts),
    )
