"""Where the kernels run: on a CUDA device, or where there is none on the CPU, in Triton's interpreter.

The interpreter is on in the tests of this folder alone: Triton's functions and those of our kernels are replaced by
interpreted ones and put back, whether Triton was imported before or not. What compiles in the same process finds Triton
as it was.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import DEVICE
from packaging.version import Version

from timm_sk.bench.agreement import exact_float32
from timm_sk.ops import kernels

FILES = ('device_functions', 'fuse', 'select', 'two_branch')
INTERPRETED_ALWAYS = 'test_two_branch'  # modules whose tests for a CUDA device are marked so


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker('gpu') is not None and DEVICE != 'cuda':
        pytest.skip('needs a CUDA device')


@pytest.fixture(autouse=True)
def interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interpret kernels in a test, unless it is to run them on a CUDA device."""
    triton = pytest.importorskip('triton')
    on_cuda = request.node.get_closest_marker('gpu') is not None or (
        DEVICE == 'cuda' and INTERPRETED_ALWAYS not in request.node.nodeid
    )
    if on_cuda:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, interpreter_builder

    if not interpreter_works(triton.__version__, np.__version__):
        why = f"Triton {triton.__version__}'s interpreter needs numpy < 2.4, found {np.__version__}"
        monkeypatch.setattr(InterpretedFunction, '__getitem__', lambda function, grid: pytest.skip(why))
    language = triton.language
    classes = [language.tensor, language.dtype, language.core.tensor_descriptor_base]
    files = [importlib.import_module(f'{kernels.__name__}.{name}') for name in FILES]
    modules = [language.standard, *files]
    with unchanged([language, language.core, language.math, *classes, *modules]):
        for module in (language, *modules):
            for name, function in list(vars(module).items()):
                if isinstance(function, triton.JITFunction):
                    setattr(module, name, InterpretedFunction(function.fn))
        monkeypatch.setattr(InterpreterBuilder, 'create_dot', widened(InterpreterBuilder.create_dot))
        # a check of every integer's sum and product, which takes most of the time
        options = replace(interpreter_builder.options, sanitize_overflow=False)
        monkeypatch.setattr(interpreter_builder, 'options', options)
        monkeypatch.setattr(kernels, 'INTERPRETED', True)
        monkeypatch.setenv('TRITON_INTERPRET', '1')  # which Triton reads too, when it launches
        yield


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Keep a GPU's convolutions from rounding float32, which is what the kernels are compared in."""
    with exact_float32():
        yield


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill new memory with NaN, so that an element that no kernel writes cannot be right by chance."""
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def interpreter_works(triton: str, numpy: str) -> bool:
    """Whether Triton's interpreter runs with this numpy. Before 3.7 it makes scalars of arrays, which 2.4 refuses."""
    return Version(triton) >= Version('3.7') or Version(numpy) < Version('2.4')


@contextmanager
def unchanged(owners: list[Any]) -> Iterator[None]:
    """Put back attributes of modules and classes, of which the interpreter does not put back all that it replaces."""
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in zip(owners, before, strict=True):
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def widened(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """Products of bfloat16 in float32: the interpreter multiplies their bit patterns, as if they were integers."""

    from triton.language import bfloat16, float32

    def create_widened_dot(builder: Any, a: Any, b: Any, *args: Any) -> Any:
        if a.dtype.scalar == bfloat16:
            a, b = builder.cast_impl(a, float32), builder.cast_impl(b, float32)
        return create_dot(builder, a, b, *args)

    return create_widened_dot
