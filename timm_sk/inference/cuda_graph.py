"""A forward pass as a CUDA graph: for one shape of input, one call launches all its kernels.

At small batches a GPU mostly waits for the next launch. A graph removes the launches, and the Python between them; the
kernels are the same. It also captures what `torch.compile` made. Unlike the graphs of `mode='reduce-overhead'`, any
thread may call it, and the next call does not overwrite its outputs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops

WARM_UP_CALLS = 3  # on the capturing stream, so that libraries and the allocator make their workspaces before

Forward = Callable[[Tensor], Any]


class Recording(NamedTuple):
    """A captured forward pass."""

    input: Tensor  # that it reads
    output: Any  # tensor, or structure of tensors, that it writes
    replay: Callable[[], object]  # runs it on the current stream
    lock: Callable[[], AbstractContextManager[None]]  # in which other threads, and on the device other streams, wait


class GraphedForward:
    """A forward pass that is replayed for inputs of one shape.

    A call copies its input in, replays, and copies the output out. It does not wait for the device. Calls from several
    streams run one after the other, since they share the graph's memory.

    The graph keeps the memory of weights and intermediate results. Weights changed in place change its results,
    replaced weights do not.

    Args:
        run: Forward pass, which must not synchronize, and must launch the same kernels each time.
        x: Input of the shape, [B, C, H, W], in the dtype and memory format of the pass.

    Raises:
        RuntimeError: If the pass cannot be captured.
    """

    def __init__(self, run: Forward, x: Tensor) -> None:
        self._run = run  # keeps alive the memory that the kernels read
        with torch.inference_mode(False), torch.no_grad():
            self._recording = record(run, x.clone())

    def takes(self, x: Tensor) -> bool:
        """Whether it can be replayed on an input, whatever its dtype and memory format."""
        recorded = self._recording.input
        return (
            ops.runs_eagerly(x)
            and x.shape == recorded.shape
            and x.device == recorded.device
            and not (x.is_cuda and torch.cuda.is_current_stream_capturing())  # by a graph around this one
        )

    def __call__(self, x: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad(), self._recording.lock():
            self._recording.input.copy_(x)
            self._recording.replay()
            return tree_map_only(Tensor, Tensor.clone, self._recording.output)


def record(run: Forward, x: Tensor) -> Recording:
    """Capture a forward pass on a CUDA device, after warming it up on the stream that captures.

    The recording reads `x` from then on.

    Raises:
        RuntimeError: If it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # `torch.cuda.graph` does not leave its stream if a capture fails
            for _ in range(WARM_UP_CALLS):
                run(x)
            # other threads, such as those that load data, may allocate meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
                output = run(x)
        torch.cuda.current_stream().wait_stream(stream)
    return Recording(input=x, output=output, replay=graph.replay, lock=_device_lock(x.device))


def _device_lock(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A lock between threads, under which each stream of a device waits for the work of the one before."""
    lock, done = threading.Lock(), torch.cuda.Event()

    @contextmanager
    def locked() -> Iterator[None]:
        with lock, torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            stream.wait_event(done)
            yield
            done.record(stream)

    return locked
