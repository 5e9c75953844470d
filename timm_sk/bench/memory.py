"""Memory: bytes kept for the backward pass, and the peak of one step."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(forward: Callable[[], object], *, excluded: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass.

    Counts the whole storage of every tensor that passes through autograd's hooks, each once, except those of excluded
    tensors, such as parameters and buffers, and autocast's copies of them. What a custom function keeps outside
    `save_for_backward` is not seen. `forward` returns what holds the graph.
    """
    leaves = set(excluded)
    addresses = {tensor.untyped_storage().data_ptr() for tensor in leaves}
    saved: list[Tensor] = []  # alive until all are counted, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        detached = tensor.detach()  # the tensor itself may hold the node that saves it, a cycle
        if _cast_from(tensor) not in leaves:
            saved.append(detached)
        return detached

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    del graph
    return sum(size for address, size in storages.items() if address not in addresses)


def _cast_from(tensor: Tensor) -> Tensor | None:
    """The parameter from which a tensor was cast, if any."""
    node = tensor.grad_fn
    if node is None or node.name() != 'ToCopyBackward0':
        return None
    return getattr(node.next_functions[0][0], 'variable', None)


def peak_bytes(step: Callable[[], object], *, device: torch.device) -> int:
    """The most bytes of tensors that one step holds at a time beyond those before it.

    On CUDA by the caching allocator; on a CPU by torch's profiler, which sees all allocations of tensors, but not those
    of libraries such as oneDNN. Run the step once before, so that what is made on first use exists.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # else the profiler complains of a missing GPU on every use
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    memory = sorted((event for event in events if event.get('name') == '[memory]'), key=lambda event: event['ts'])
    if not memory:
        return 0
    totals = [event['args']['Total Allocated'] for event in memory]
    before = totals[0] - memory[0]['args']['Bytes']
    return max(0, max(totals) - before)
