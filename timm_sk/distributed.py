"""The processes that torchrun starts: who this one is, and how they agree."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .devices import open_device
from .errors import PeerStoppedError

T = TypeVar('T')
_PATIENCE = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """This process among others.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        device: What it computes on.
        restarts: How often torchrun has started all of them anew.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: T) -> list[T]:
        """A value of each process, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """Do work that leaves files behind in the first process, and when it is done in the others."""
        if not self.is_main:
            self.wait()
        result = work()
        if self.is_main:
            self.wait()
        return result

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @torch.no_grad()
    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: each has running statistics of its own images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[DistributedContext]:
    """Join the other processes, if torchrun started some, and leave them in the end.

    Args:
        device: 'cpu', 'cuda' or 'cuda:1'; the best one if not given. Of several processes each takes a GPU of its own.

    Raises:
        ValueError: If there is no such device here.
        PeerStoppedError: If another process has stopped meanwhile.
    """
    name = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    size, local = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('LOCAL_RANK', 0))
    place = open_device(f'cuda:{local}' if size > 1 and name.partition(':')[0] == 'cuda' else name)
    if place.type == 'cuda':
        place = torch.device('cuda', place.index or 0)
        torch.cuda.set_device(place)
    if size == 1:
        yield DistributedContext(device=place)
        return
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    store, rank, size = next(dist.rendezvous('env://', timeout=_PATIENCE))
    if os.environ.get('GROUP_WORLD_SIZE', '1') == '1':
        # torchrun keeps its store over restarts, and with it the addresses of processes that are gone; several agents
        # count restarts each for itself, and so could not agree on a name
        store = dist.PrefixStore(f'timm_sk/{restarts}', store)
    # tensors on the CPU go by gloo, so that to agree on something waits for no GPU
    backend = 'cpu:gloo,cuda:nccl' if place.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield DistributedContext(rank=dist.get_rank(), size=size, device=place, restarts=restarts)
    except RuntimeError as error:
        if is_peer_failure(error):
            raise PeerStoppedError("Another process stopped: see its message, or torchrun's summary.") from error
        raise
    finally:
        dist.destroy_process_group()


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error is how torch says that another process does not answer any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and 'gloo' in str(error).lower())


def fail_together(context: DistributedContext, work: Callable[[], T]) -> T:
    """Do work in every process, and fail in all of them if it fails in one, so that none waits for another in vain.

    Raises:
        Exception: What the first process that failed raised, in that process; in the others a RuntimeError or a
            ValueError with the same message.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    kind = RuntimeError if isinstance(failure, RuntimeError) else ValueError
    failures = context.gather(None if failure is None else (kind, str(failure) or type(failure).__name__))
    first = next((rank for rank, found in enumerate(failures) if found), None)
    if first is None:
        return result
    if first == context.rank and failure:
        raise failure
    echoed, message = failures[first] or (ValueError, '')
    raise echoed(message) from failure
