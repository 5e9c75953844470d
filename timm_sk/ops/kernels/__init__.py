"""Fuse and select as Triton kernels for CUDA devices.

`timm_sk` imports only this file, which needs no Triton; `available` looks for it at first use. The other modules
register the operators `timm_sk::fuse`, `timm_sk::select` and `timm_sk::two_branch`, which `torch.compile` keeps.
"""

import importlib
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_BRANCHES = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Whether compiled graphs keep the operators. False leaves the selection to inductor, which can join the
# reference's steps with a norm and an activation before them.
IN_COMPILED_GRAPHS = True

# Whether Triton's interpreter runs the kernels, and so on the CPU too. Triton reads the variable as it decorates them.
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

_NEEDED_TRITON = (3, 3)  # the first with tuples of tensors as arguments
_NEEDED_CAPABILITY = 80  # 8.0, the first with bfloat16

_found: bool | None = None


@torch.compiler.assume_constant_result  # asked while torch.compile traces
def available() -> bool:
    """Whether the kernels can run here: Triton with a CUDA device, or Triton's interpreter.

    Looked for once, with one line in the log of `timm_sk` where something is missing on a CUDA machine.
    """
    global _found
    if INTERPRETED:
        return True
    if _found is None:
        missing = _missing()
        _found = missing == ''
        if missing and torch.cuda.is_available():
            logging.getLogger('timm_sk').warning('No Triton kernels on this CUDA device: %s.', missing)
    return _found


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on a device: CUDA, or the CPU in Triton's interpreter."""
    return (device.type == 'cuda' or (INTERPRETED and device.type == 'cpu')) and available()


def load(name: str) -> bool:
    """Import a module of kernels, which registers its operators; False without a working Triton."""
    if not available():
        return False
    importlib.import_module(f'{__name__}.{name}')
    return True


def takes(branches: Sequence[Tensor], logits: Tensor | None = None) -> bool:
    """Whether the kernels support such tensors.

    That is at most `MAX_BRANCHES` branches of one of `DTYPES` on one CUDA device, and logits in any of `DTYPES` on the
    same device; on a CPU only in Triton's interpreter.

    Args:
        branches: Branches, or tensors of the same dtype and device.
        logits: Logits of the selection, or None.
    """
    first = branches[0]
    if not runs_on(first.device) or len(branches) > MAX_BRANCHES or first.dtype not in DTYPES:
        return False
    if any(branch.dtype != first.dtype or branch.device != first.device for branch in branches):
        return False
    return logits is None or (logits.dtype in DTYPES and logits.device == first.device)


def _missing() -> str:
    """What is missing for compiled kernels; '' if nothing is."""
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    try:
        import triton

        version = tuple(int(part) for part in triton.__version__.split('.')[:2])
        if version < _NEEDED_TRITON:
            return f'Triton {triton.__version__} is older than {".".join(map(str, _NEEDED_TRITON))}'
        # builds the driver's part, for which it needs a C compiler
        target = triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever a broken installation raises
        return f'Triton does not start ({type(error).__name__}: {next(iter(str(error).splitlines()), "")})'
    if target.backend == 'cuda' and target.arch < _NEEDED_CAPABILITY:
        return f'its compute capability is below {_NEEDED_CAPABILITY / 10}'
    return ''
