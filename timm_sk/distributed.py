"""The processes that torchrun starts."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .devices import open_device
from .errors import PeerStoppedError

T = TypeVar('T')
_TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """The rank and device of this process, and the collective operations; a single process by default."""

    rank: int = 0  # from 0
    size: int = 1  # number of processes
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))
    restarts: int = 0  # of the processes by torchrun

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.all_reduce(torch.tensor(int(flag))))

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def all_gather(self, value: T) -> list[T]:
        """Values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """Call a function in the main process, and then in the others, which find the files that it wrote."""
        if not self.is_main:
            self.barrier()
        result = work()
        if self.is_main:
            self.barrier()
        return result

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def run_in_main(self, work: Callable[[], T]) -> T:
        """Call a function in the main process; its result or its error is that of all processes."""
        result = fail_together(self, work if self.is_main else lambda: None)
        return self.all_gather(result)[0]  # type: ignore[return-value]


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: 'cpu', 'cuda' or 'cuda:1'; CUDA where available by default. Each of several processes takes a GPU of
            its own.

    Raises:
        ValueError: If the device is invalid or missing.
        PeerStoppedError: If another process has stopped.
    """
    size, local_rank = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('LOCAL_RANK', 0))
    name = device or open_device(types=('cpu', 'cuda')).type
    if size > 1 and name.partition(':')[0] == 'cuda':
        name = f'cuda:{local_rank}'
    opened = open_device(name)
    if opened.type == 'cuda':
        opened = torch.device('cuda', opened.index or 0)
        torch.cuda.set_device(opened)
    if size == 1:
        yield DistributedContext(device=opened)
        return
    restarts = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    store, rank, size = next(dist.rendezvous('env://', timeout=_TIMEOUT))
    if os.environ.get('GROUP_WORLD_SIZE', '1') == '1':
        # torchrun keeps its store over restarts, and with it the addresses of processes that are gone; several agents
        # count restarts separately, and so could not agree on a name
        store = dist.PrefixStore(f'timm_sk/{restarts}', store)
    # gloo for tensors on the CPU: agreeing on a flag does not wait for the GPU
    backend = 'cpu:gloo,cuda:nccl' if opened.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        yield DistributedContext(rank=dist.get_rank(), size=size, device=opened, restarts=restarts)
    except RuntimeError as error:
        if is_peer_failure(error):
            raise PeerStoppedError("Another process stopped: see its message, or torchrun's summary.") from error
        raise
    finally:
        dist.destroy_process_group()


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error of torch means that another process does not answer any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and 'gloo' in str(error).lower())


def fail_together(context: DistributedContext, work: Callable[[], T]) -> T:
    """Call a function in every process; if it fails in one, raise in all, so that none waits for another forever.

    Raises:
        Exception: The error of the first process that failed; the others raise a RuntimeError or a ValueError with its
            message.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is, the other processes must not wait
        failure = error
    kind = RuntimeError if isinstance(failure, RuntimeError) else ValueError
    failures = context.all_gather(None if failure is None else (kind, str(failure) or type(failure).__name__))
    for rank, found in enumerate(failures):
        if found:
            if rank == context.rank and failure:
                raise failure
            echoed, message = found
            raise echoed(message) from failure
    return result
