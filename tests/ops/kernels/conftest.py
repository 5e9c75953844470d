"""Where the kernels run: on a CUDA device, or where there is none on the CPU, in Triton's interpreter.

Triton was imported long before, by timm, and without the interpreter. So the kernels are decorated here, at their first
import, and for the duration of a test Triton's own functions are replaced by interpreted ones. Outside of these tests
nothing is interpreted, whatever else runs in this process.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from kernel_cases import DEVICE

from timm_sk.ops import kernels

if find_spec('triton') is None:
    collect_ignore_glob = ['*']
elif DEVICE == 'cpu':
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, 'TRITON_INTERPRET', '1')
        import timm_sk.ops.kernels.folded  # noqa: F401


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') is not None and DEVICE != 'cuda':
        pytest.skip('needs a CUDA device')


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU have the kernels, where there is no CUDA device."""
    if DEVICE == 'cuda':
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    monkeypatch.setattr(kernels, 'INTERPRETED', True)
    for name, function in list(vars(tl).items()):
        if isinstance(function, JITFunction):
            monkeypatch.setattr(tl, name, InterpretedFunction(function.fn))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill new memory with NaN, so that an element that no kernel writes cannot be right by chance."""
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
