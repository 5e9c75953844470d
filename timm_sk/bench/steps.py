"""What one step does: a forward pass for inference, or a whole step of SGD."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE = 1e-3  # small: random labels are not to be learnt, and the numbers must stay finite


class Inference:
    """A forward pass in eval mode without gradients.

    Args:
        module: The model, which holds the weights.
        pictures: Input sets in the model's dtype, [B, 3, H, W] each, taken in turn.
        forward: How it is called, where that is not the module itself.
    """

    def __init__(
        self, module: nn.Module, pictures: Sequence[Tensor], *, forward: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.module = module.eval()
        self.pictures = pictures
        self.forward = module if forward is None else forward

    def __call__(self, index: int = 0) -> Tensor:
        with torch.no_grad():
            return self.forward(self.pictures[index % len(self.pictures)])


class Training:
    """Zero the gradients, forward, cross entropy, backward, SGD with momentum 0.9, in train mode.

    Parameters are float32; in another dtype the forward pass runs under autocast, and in float16 the loss is scaled.

    Args:
        module: The model, which holds the weights.
        pictures: Input sets in float32, [B, 3, H, W] each, taken in turn.
        labels: Random classes, [B].
        dtype: Of the forward pass.
        forward: How it is called, where that is not the module itself.
    """

    def __init__(
        self,
        module: nn.Module,
        pictures: Sequence[Tensor],
        labels: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.module = module.train()
        self.pictures = pictures
        self.labels = labels
        self.dtype = dtype
        self.forward = module if forward is None else forward
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=0.9)
        self.scaler = torch.amp.GradScaler(labels.device.type, enabled=dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass."""
        return torch.autocast(self.labels.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def loss(self, index: int = 0, *, first: int | None = None) -> tuple[Tensor, Tensor]:
        """The loss and the output [B, classes] of one forward pass, with their graph.

        Args:
            index: Which input set.
            first: Take only its first pictures, so many.
        """
        with self.autocast():
            output = self.forward(self.pictures[index % len(self.pictures)][:first])
            return F.cross_entropy(output, self.labels[:first]), output

    def gradients(self, *, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Forward and backward; loss and output, with the gradients unscaled in the parameters."""
        self.optimizer.zero_grad()
        loss, output = self.loss(first=first)
        scaled = self.scaler.scale(loss)
        scaled.backward()
        for parameter in self.module.parameters():
            if parameter.grad is not None and self.scaler.is_enabled():
                parameter.grad /= self.scaler.get_scale()
        return loss.detach(), output.detach()

    def __call__(self, index: int = 0) -> None:
        self.optimizer.zero_grad()
        loss, _ = self.loss(index)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


Step = Inference | Training
