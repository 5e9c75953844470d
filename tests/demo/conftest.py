"""One served page for the tests of a module."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope='module')
def address() -> Iterator[str]:
    pytest.importorskip('gradio')
    from timm_sk.demo.server import serving

    with serving(host='127.0.0.1') as address:
        yield address.rstrip('/')
