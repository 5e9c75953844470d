"""Names from files in messages."""

import pytest
import torch

from timm_sk.console import err, log_error
from timm_sk.errors import MismatchedCheckpointError
from timm_sk.pretrained import check_state_dict


@pytest.mark.parametrize('key', ['a' * 200_000, '\x1b[31mred', 'new\nline'])
def test_names_in_messages(key):
    with pytest.raises(MismatchedCheckpointError) as raised:
        check_state_dict({key: torch.zeros(1)}, {})
    message = str(raised.value)
    assert len(message) < 400
    assert message.isprintable()
    assert 'unexpected: ' in message


def test_control_characters_are_removed():
    with err.capture() as captured:
        log_error('a \x1b[31mred\x07 name\nof a file')
    assert captured.get() == 'timm-sk: a [31mred name of a file\n'
