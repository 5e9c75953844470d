"""What one step does: a forward pass for inference, or a whole step of SGD."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .agreement import exact_float32

LEARNING_RATE = 1e-3  # small: labels are random, and the weights must stay finite

Forward = Callable[[Tensor], Tensor]


class Inference:
    """A forward pass in eval mode without gradients, of batches [B, 3, H, W] in the model's dtype, which take turns.

    `forward` runs the model if that is not the module itself.
    """

    def __init__(self, module: nn.Module, images: Sequence[Tensor], *, forward: Forward | None = None) -> None:
        self.module = module.eval()
        self.images = images
        self.forward = forward or module

    def __call__(self, index: int = 0) -> Tensor:
        with torch.no_grad():
            return self.forward(self.images[index % len(self.images)])

    def observe(self, first: int | None = None) -> dict[str, Tensor]:
        """The output of the first images, in float32, without TF32; the batch is computed for which it was deployed."""
        with exact_float32():
            return {'output': self()[:first].float().clone()}


class Training:
    """Zero the gradients, forward, cross entropy, backward, SGD with momentum 0.9, in train mode.

    Parameters and images are float32; in another dtype the forward pass runs under autocast, and in float16 the loss is
    scaled. `forward` runs the model if that is not the module itself.
    """

    def __init__(
        self,
        module: nn.Module,
        images: Sequence[Tensor],
        labels: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        forward: Forward | None = None,
    ) -> None:
        self.module = module.train()
        self.images = images
        self.labels = labels
        self.dtype = dtype
        self.forward = forward or module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=0.9)
        self.scaler = torch.amp.GradScaler(labels.device.type, enabled=dtype is torch.float16)

    def loss(self, index: int = 0, *, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Loss and output [B, classes] of the first images of a batch, with their graph."""
        with torch.autocast(self.labels.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            output = self.forward(self.images[index % len(self.images)][:first])
            return F.cross_entropy(output, self.labels[:first]), output

    def observe(self, first: int | None = None) -> dict[str, Tensor]:
        """Output, loss, gradients and running statistics of the first images, in float32; no parameter changes."""
        self.optimizer.zero_grad()
        with exact_float32():
            loss, output = self.loss(first=first)
            self.scaler.scale(loss).backward()
        parameters = [p for _, p in sorted(self.module.named_parameters())]
        buffers = [buffer for name, buffer in sorted(self.module.named_buffers()) if 'running' in name]
        scale = self.scaler.get_scale()  # 1 unless enabled
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad / scale for p in parameters]
        self.optimizer.zero_grad()
        return {
            'output': output.detach().float(),
            'loss': loss.detach().float(),
            'running statistics': torch.cat([buffer.flatten().float() for buffer in buffers]),
            'gradients': torch.cat([gradient.flatten().float() for gradient in gradients]),
        }

    def __call__(self, index: int = 0) -> None:
        self.optimizer.zero_grad()
        loss, _ = self.loss(index)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


Step = Inference | Training
