"""Set-up shared by all tests: no network, an empty store, reproducible torch, one thread per worker."""

import os

os.environ['HF_HUB_OFFLINE'] = '1'  # read by huggingface_hub at import
os.environ['COLUMNS'] = '200'  # read by the consoles at import

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from huggingface_hub import HfApi, constants
from tiers import mark_deep_cases

import timm_sk  # noqa: F401  (registers the models)


@pytest.hookimpl(tryfirst=True)  # before -m leaves out what is deep
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_deep_cases(items)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own store."""
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path / 'store'))


@pytest.fixture(autouse=True)
def deterministic_torch() -> Iterator[None]:
    torch.set_num_threads(1)  # pytest-xdist runs a worker per core
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A loopback Hub for the client of the environment."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client's, between its attempts
    with Hub() as hub:
        for name, value in hub.client_settings(tmp_path / 'cache').items():
            monkeypatch.setattr(constants, name, value)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token='hf_owner')
