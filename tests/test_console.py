"""The processes of torchrun log each error once, and a consequence only if none of them has logged the cause."""

import pytest
import torch.distributed as dist
import typer

from timm_sk.console import log_once, one_line_errors
from timm_sk.errors import PeerStoppedError


@pytest.fixture
def agent(monkeypatch):
    """The store of an agent of torchrun."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'run')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(store.port))
    return store


def logged(error, capsys):
    with pytest.raises(typer.Exit) as left, one_line_errors():
        raise error
    assert left.value.exit_code == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures('agent')
def test_log_error_once_per_run(monkeypatch, capsys):
    assert logged(ValueError('lr must be above 0.'), capsys) == 'timm-sk: lr must be above 0.\n'
    assert logged(ValueError('lr must be above 0.'), capsys) == ''
    assert logged(OSError('4.png cannot be read.'), capsys) == 'timm-sk: 4.png cannot be read.\n'
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert logged(ValueError('lr must be above 0.'), capsys) == 'timm-sk: lr must be above 0.\n'


@pytest.mark.usefixtures('agent')
def test_log_consequence_without_cause(monkeypatch, capsys):
    monkeypatch.setattr('timm_sk.console._SECONDS_FOR_THE_CAUSE', 0.2)
    gone = PeerStoppedError('Another process stopped.')
    assert logged(gone, capsys) == 'timm-sk: Another process stopped.\n'
    assert logged(gone, capsys) == ''
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert logged(ValueError('The cause.'), capsys) == 'timm-sk: The cause.\n'
    assert logged(gone, capsys) == ''


def test_log_every_error_without_agent(agent, monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'False')
    log_once('line')
    log_once('line')
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setattr('timm_sk.console._STORE_TIMEOUT', dist.default_pg_timeout / 10000)
    monkeypatch.setenv('MASTER_PORT', '1')
    log_once('line')
    assert capsys.readouterr().err == 'timm-sk: line\n' * 3
