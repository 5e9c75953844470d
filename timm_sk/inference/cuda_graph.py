"""A forward pass as a CUDA graph: for one shape of input, all its kernels are launched by one call.

At small batches a GPU waits for the next launch most of the time. A graph takes the launches, and the Python between
them, off the host; the kernels are the same. It also captures what `torch.compile` made: one mechanism for both forms,
which any thread may call, in place of the graphs of `mode='reduce-overhead'`, whose outputs the next call overwrites.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import ops

WARM_UP_CALLS = 3  # on the capturing stream, whose libraries and allocator make their workspaces then

Forward = Callable[[Tensor], Any]


class Recording(NamedTuple):
    """A captured forward pass.

    Attributes:
        given: What it reads, always at this address.
        made: What it writes: a tensor, or a structure of them.
        replay: Runs it on the current stream.
        turn: Holds off other threads, and on the device other streams, until the block's work is done.
    """

    given: Tensor
    made: Any
    replay: Callable[[], object]
    turn: Callable[[], AbstractContextManager[None]]


class GraphedForward:
    """A forward pass that is replayed for inputs of one shape.

    A call copies its input in, replays, and copies the output out: the tensors it returns are the caller's. It does not
    wait for the device. Calls from several streams run one after the other, since they share the graph's memory.

    The graph holds on to the memory of weights and of all that is computed in between; weights that are changed in
    place change its results, and weights that are replaced do not.

    Args:
        run: The forward pass. It must not synchronise, and on a shape always launches the same kernels.
        x: An input of the shape, [B, C, H, W], in the dtype and memory format of the pass.
        capture: Makes the recording.

    Raises:
        RuntimeError: If the pass cannot be captured.
    """

    def __init__(
        self, run: Forward, x: Tensor, *, capture: Callable[[Forward, Tensor], Recording] | None = None
    ) -> None:
        self._run = run  # which keeps alive what the kernels read
        with torch.inference_mode(False), torch.no_grad():
            self._recording = (capture or record)(run, x.clone())

    def takes(self, x: Tensor) -> bool:
        """Whether it can be replayed on an input, of whichever dtype and memory format, here and now."""
        given = self._recording.given
        return (
            ops.runs_eagerly(x)
            and x.shape == given.shape
            and x.device == given.device
            and not (x.is_cuda and torch.cuda.is_current_stream_capturing())  # by a graph around this one
        )

    def __call__(self, x: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad(), self._recording.turn():
            self._recording.given.copy_(x)
            self._recording.replay()
            return tree_map_only(Tensor, Tensor.clone, self._recording.made)


def record(run: Forward, x: Tensor) -> Recording:
    """Capture a forward pass on a CUDA device, after warming it up on the stream that captures.

    Args:
        run: The forward pass.
        x: Its input, which becomes the recording's.

    Raises:
        RuntimeError: If it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # left also where a capture fails, which `torch.cuda.graph` does not see to
            for _ in range(WARM_UP_CALLS):
                run(x)
            # other threads, as those that load data, may go on allocating
            with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
                made = run(x)
        torch.cuda.current_stream().wait_stream(stream)
    return Recording(given=x, made=made, replay=graph.replay, turn=_turns(x.device))


def _turns(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Turns on a device: the stream of each waits for the work of the one before; the host does not."""
    lock, done = threading.Lock(), torch.cuda.Event()

    @contextmanager
    def turn() -> Iterator[None]:
        with lock, torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            stream.wait_event(done)
            yield
            done.record(stream)

    return turn
