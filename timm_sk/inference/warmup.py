"""Warm-up: a model's first calls on a GPU, made before the model is returned.

First calls load and compile kernels, and ask cuDNN for an algorithm for each convolution. cuDNN keeps the answer for
each shape and thread, whatever `torch.backends.cudnn.benchmark` is later: the first call of a shape decides how fast
the others are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

CALLS = 2  # in the second, the allocator may still lack blocks of its sizes


@contextmanager
def cudnn_benchmark(enabled: bool = True) -> Iterator[None]:
    """Set `torch.backends.cudnn.benchmark` in the context: whether cuDNN measures its algorithms for each new shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def warm_up(run: Callable[[Tensor], Any], x: Tensor) -> None:
    """Call a model without gradients on an input of the shape that it should be fast for.

    On CUDA this waits for the device, so that calls on other streams find the model ready.
    """
    with torch.no_grad(), cudnn_benchmark():
        for _ in range(CALLS):
            run(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
