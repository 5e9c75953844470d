"""The branches of a unit as one explicit value: the tensors, and what the operators may know beyond them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from . import reference


class Epilogue(NamedTuple):
    """Bias and activation that convolution outputs still lack; the kernels apply them as they read.

    Attributes:
        biases: [C] for each tensor, which holds one branch.
        activation: '', 'relu' or 'relu6'.
    """

    biases: Sequence[Tensor]
    activation: str


NO_EPILOGUE = Epilogue((), '')


class BatchNormReLUState(NamedTuple):
    """What it takes to compute `relu(batch_norm(source))` again in a backward pass.

    Attributes:
        source: [B, C, H, W].
        weight: [C], the norm's, or None.
        bias: [C], the norm's, or None.
        mean: [C], of the batch in train mode, else the running mean.
        variance: [C], likewise.
        inverse_std: [C], 1 / sqrt(variance + eps) in train mode.
        eps: The norm's.
        training: Whether mean and variance are the batch's.
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

    def norm(self) -> Tensor:
        """[B, C, H, W]; where a graph is recorded, a function of source, weight and bias, batch statistics included."""
        if self.training and torch.is_grad_enabled():
            return F.batch_norm(self.source, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(self.source, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)

    def features(self) -> Tensor:
        """The norm's values after the ReLU, [B, C, H, W]."""
        return self.norm().relu_()


@dataclass(frozen=True)
class Branches:
    """M = len(tensors) * R branches [B, C, H, W], as a sequence of them.

    Attributes:
        tensors: [B, R * C, H, W] each: R branches side by side in the channels.
        radix: R.
        epilogue: What the tensors still lack, if anything.
        states: How to compute each tensor again, so that the selection need not keep it for its backward pass; or ().
        private: Nobody but who made this value holds the tensors.
        observed: Someone may look at autograd's graph, which is to have ordinary PyTorch operations.
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

    def __len__(self) -> int:
        return len(self.tensors) * self.radix

    def __getitem__(self, index: int) -> Tensor:
        return self.unpack()[index]


def join(parts: Sequence[Branches]) -> Any:
    """The branches of several values of one radix as one value; a list of M tensors for `torch.fx`'s tracer."""
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
