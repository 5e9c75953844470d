"""Compile every kernel for a CUDA device that need not be there, and print what its code looks like, a JSON per line.

Run as a program, since Triton decides at the kernels' import whether they are compiled or interpreted.
"""

import json
import re
import subprocess
import tempfile
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget

from timm_sk.ops import kernels
from timm_sk.ops.kernels import fuse, launcher, select, two_branch
from timm_sk.ops.kernels.two_branch_tiling import block_count

TWO_BRANCHES = (  # channels, groups, height and width, dtype
    (128, 32, 56, torch.bfloat16),  # blocks of 32
    (48, 1, 56, torch.bfloat16),  # no power of two
    (128, 1, 28, torch.bfloat16),
    (128, 32, 56, torch.float32),
    (128, 1, 28, torch.float32),
)


def absent_device(capability: int) -> SimpleNamespace:
    """A driver for a device of some compute capability, which is its number as well."""
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', capability, 32),
        get_current_device=lambda: capability,
        get_current_stream=lambda device=None: 0,
    )


def compile_only(name: str, kernel, programs: int, device: torch.device, *args: object, **constants: object) -> None:
    compiled = kernel.warmup(*args, grid=(programs,), **constants)
    ptx = compiled.asm['ptx']
    with tempfile.NamedTemporaryFile('w', suffix='.ptx') as file:
        file.write(ptx)
        file.flush()
        gpu = re.search(r'\.target (\w+)', ptx)[1]
        command = [triton.knobs.nvidia.ptxas.path, '-v', f'--gpu-name={gpu}', file.name, '-o', '/dev/null']
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    facts = dict(
        name=name,
        device=gpu,
        accesses=sorted(set(re.findall(r'(?:ld|st)\.global[\w.]*', ptx))),
        atomics=len(re.findall(r'\b(?:atom|red)\.', ptx)),
        registers=int(re.search(r'Used (\d+) registers', report)[1]),
        spilled=int(re.search(r'(\d+) bytes spill stores', report)[1]),
        shared=compiled.metadata.shared,
        products=sorted(set(re.findall(r'wgmma.mma_async|mma.sync|fma.rn.f32', ptx))),
    )
    print(json.dumps(facts))


def two_branches(channels: int, groups: int, size: int, dtype: torch.dtype) -> None:
    """The forms of the two-branch kernel for a unit of sknet50 or skresnet34."""
    blocks = block_count(channels, channels, groups)
    width = channels // blocks
    x = torch.empty(2, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = torch.empty(2, blocks, 9, width, width, dtype=dtype), torch.empty(2, channels, dtype=dtype)
    for form in ('store', 'fuse', 'select'):
        logits = torch.empty(2, 2, channels, dtype=dtype) if form == 'select' else None
        label = f'two_branch_{form} {channels}/{groups} {str(dtype)[6:]}'
        two_branch.launcher.launch = lambda _, *args, label=label, **constants: compile_only(label, *args, **constants)
        two_branch.compute(x, weight, bias, 1, [1, 2], logits, form == 'store')


def main() -> None:
    kernels.INTERPRETED = True  # the tensors are on the CPU
    launcher._sizes = lambda device: launcher.sizes_for(132)
    fuse.launch = select.launch = compile_only
    for capability, count, memory_format in ((80, 4, torch.contiguous_format), (90, 2, torch.channels_last)):
        triton.runtime.driver.set_active(absent_device(capability))
        shape = (8, 64, 56, 56)
        branches = [torch.empty(shape, dtype=torch.bfloat16).to(memory_format=memory_format) for _ in range(count)]
        logits, biases = torch.empty(8, count, 64), [torch.empty(64) for _ in range(count)]
        fuse.fuse(branches, 1, [], '')
        select.select(branches, logits, 'softmax', [], '')
        select.select_backward(branches[0], branches, logits, ('softmax', 'sigmoid')[count // 4])
        fuse.fuse(branches, 1, biases, 'relu')
        select.select(branches, logits, 'sigmoid', biases, 'relu6')
        for channels, groups, size, dtype in TWO_BRANCHES:
            two_branches(channels, groups, size, dtype)


if __name__ == '__main__':
    main()
