"""Every architecture keeps its parameters' names and shapes: a change would lock out published weights."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
from variants import ARCHITECTURES

FINGERPRINTS = json.loads((Path(__file__).parent.parent / 'data' / 'fingerprints.json').read_text())


def fingerprint(name: str) -> str:
    """The sha256 of names and shapes of a state dict, in order."""
    state_dict = timm.create_model(name, device='meta').state_dict()
    return hashlib.sha256(json.dumps([(k, list(v.shape)) for k, v in state_dict.items()]).encode()).hexdigest()


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_fingerprint(name):
    assert fingerprint(name) == FINGERPRINTS[name]
