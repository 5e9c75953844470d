"""Each line is said once by all processes of torchrun, and a consequence only where nobody has said the cause."""

import pytest
import torch.distributed as dist
import typer

from timm_sk.console import is_news, one_line_errors
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


def said(error, capsys):
    with pytest.raises(typer.Exit) as left, one_line_errors():
        raise error
    assert left.value.exit_code == 1
    return capsys.readouterr().err


@pytest.mark.usefixtures('agent')
def test_a_line_is_news_once_in_a_run(monkeypatch, capsys):
    assert said(ValueError('lr must be above 0.'), capsys) == 'timm-sk: lr must be above 0.\n'
    assert said(ValueError('lr must be above 0.'), capsys) == ''
    assert said(OSError('4.png cannot be read.'), capsys) == 'timm-sk: 4.png cannot be read.\n'
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert said(ValueError('lr must be above 0.'), capsys) == 'timm-sk: lr must be above 0.\n'


@pytest.mark.usefixtures('agent')
def test_a_consequence_is_said_where_no_cause_is(monkeypatch, capsys):
    monkeypatch.setattr('timm_sk.console._SECONDS_FOR_THE_CAUSE', 0.2)
    gone = PeerStoppedError('Another process stopped.')
    assert said(gone, capsys) == 'timm-sk: Another process stopped.\n'
    assert said(gone, capsys) == ''
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')
    assert said(ValueError('The cause.'), capsys) == 'timm-sk: The cause.\n'
    assert said(gone, capsys) == ''


def test_without_an_agent_all_is_news(agent, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'False')
    assert [is_news('line'), is_news('line')] == [True, True]
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setattr('timm_sk.console._PATIENCE', dist.default_pg_timeout / 10000)
    monkeypatch.setenv('MASTER_PORT', '1')
    assert is_news('line')
