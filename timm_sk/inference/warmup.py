"""What a model's first calls on a GPU would pay for, paid before the model is handed out.

There, first calls load and compile kernels, and ask cuDNN for an algorithm for each convolution. The answer is kept for
each shape in each thread, and is looked up before `torch.backends.cudnn.benchmark` is: the first call of a shape
decides how fast the others are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CALLS = 2  # the first makes what the second may still find missing: buffers of its own size in the allocator


@contextmanager
def cudnn_chooses(measure: bool = True) -> Iterator[None]:
    """Let cuDNN measure which algorithm is fastest for each new shape, or let it guess; no effect but on CUDA."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = measure
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def warm_up(run: Callable[[Tensor], Any], x: Tensor) -> None:
    """Call a model on an input of the shape that it is to be fast for, without gradients.

    On CUDA the device is idle afterwards, so that no stream overtakes what prepared the model on this one.

    Args:
        run: The model, in eval mode.
        x: [B, C, H, W].
    """
    with torch.no_grad(), cudnn_chooses():
        for _ in range(CALLS):
            run(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
