"""Set-up shared by all tests: no network, an empty store, reproducible torch, one thread per worker."""

import os

os.environ['HF_HUB_OFFLINE'] = '1'  # read by huggingface_hub at import

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import timm_sk  # noqa: F401  (registers the models)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what another one stored."""
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / 'store'))


@pytest.fixture(autouse=True)
def deterministic_torch() -> Iterator[None]:
    torch.set_num_threads(1)  # pytest-xdist runs a worker per core
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()
