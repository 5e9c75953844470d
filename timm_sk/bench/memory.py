"""How much memory: bytes kept for the backward pass, and the peak of one step."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], *, left_out: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass.

    Every tensor that a node of the graph saves passes through the hooks; whole storages are counted, each once. Not
    counted are autocast's copies of what is left out, whose size does not depend on the pictures, and not seen is what
    a custom function hides outside `save_for_backward`.

    Args:
        forward: Runs it and returns what holds the graph.
        left_out: Tensors whose storages do not count, such as parameters and buffers.
    """
    leaves = set(left_out)
    without = {tensor.untyped_storage().data_ptr() for tensor in leaves}
    kept: list[Tensor] = []  # alive until all are counted, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if _cast_of(tensor) in leaves:
            return tensor.detach()
        kept.append(tensor.detach())  # the tensor itself may hold the node that saves it, a cycle
        return kept[-1]

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    del graph
    return sum(size for address, size in storages.items() if address not in without)


def _cast_of(tensor: Tensor) -> Tensor | None:
    """The parameter of which a tensor is a cast, if it is one."""
    node = tensor.grad_fn
    if node is None or node.name() != 'ToCopyBackward0':
        return None
    return getattr(node.next_functions[0][0], 'variable', None)


def peak_bytes(step: Callable[[], object], *, device: torch.device) -> int:
    """The most bytes of tensors that one step holds at a time beyond what was there before it.

    On CUDA the caching allocator's own count. On a CPU the allocations that torch's profiler records: exact for
    tensors, without what libraries such as oneDNN take for themselves.

    Args:
        step: Runs once; run it before, so that what is made on first use is there.
        device: Where it runs.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler else complains of a missing GPU on every use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    records = [(event['ts'], event['args']) for event in events if event.get('name') == '[memory]']
    records.sort(key=lambda record: record[0])
    return peak_of((record['Addr'], record['Bytes']) for _, record in records)


def peak_of(records: Iterable[tuple[int, int]]) -> int:
    """The peak of a series of allocations (address, bytes) and releases (address, minus bytes).

    Releases of what was allocated before the series do not count.
    """
    held: dict[int, int] = {}
    total = peak = 0
    for address, size in records:
        if size > 0:
            held[address] = size
            total += size
        else:
            total -= held.pop(address, 0)
        peak = max(peak, total)
    return peak
