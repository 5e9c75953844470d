"""A hub on this machine, an empty store, and a row of the table whose sources a test chooses."""

import io
import time
from dataclasses import replace

import pytest
import timm
import torch
from hub_server import Hub
from huggingface_hub import constants
from random_weights import fill_model
from small_net import NAME

from timm_sk.checkpoints import CHECKPOINTS, Source
from timm_sk.pretrained import Store, save_safetensors


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def online(hub, store, monkeypatch, tmp_path):
    """The hub's client with a cold cache, led to the loopback server; the fixture is the cache."""
    for name, value in hub.client_settings(tmp_path / 'cache').items():
        monkeypatch.setattr(constants, name, value)
    return tmp_path / 'cache'


@pytest.fixture
def waits(monkeypatch):
    """The seconds that would have been slept between attempts."""
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    return waits


@pytest.fixture
def path(tmp_path):
    """Where a test downloads to, in a folder that does not exist yet."""
    return tmp_path / 'downloads' / 'file.pth'


@pytest.fixture
def row(monkeypatch):
    """A function that gives the small net's row other sources."""

    def give(*sources, **fields):
        changed = replace(CHECKPOINTS[NAME], sources=sources, **fields)
        monkeypatch.setitem(CHECKPOINTS, NAME, changed)
        return changed

    return give


@pytest.fixture(scope='session')
def weights():
    """Random weights of the small net."""
    return fill_model(timm.create_model(NAME)).eval().state_dict()


@pytest.fixture
def release(hub, weights):
    """A function that puts the weights onto a plain server, as PyTorch saves them; gives the file and its source."""

    def put(name='atto.pth', state_dict=None, **hashes):
        buffer = io.BytesIO()
        torch.save({'state_dict': {f'module.{key}': value for key, value in (state_dict or weights).items()}}, buffer)
        hub.files[name] = buffer.getvalue()
        return buffer.getvalue(), Source(
            kind='url', location=f'{hub.endpoint}/files/{name}', format='pytorch', **hashes
        )

    return put


@pytest.fixture
def hub_repo(hub, weights, tmp_path):
    """A function that commits the weights to a repository; gives the commit."""

    def commit(name='makers/atto', state_dict=None):
        folder = tmp_path / 'repositories' / name
        folder.mkdir(parents=True, exist_ok=True)
        save_safetensors(state_dict or weights, folder / 'model.safetensors')
        return hub.add(name, folder)

    return commit
