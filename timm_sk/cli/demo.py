"""`timm-sk demo`: the page that shows what the selection does; docs/demo.md says what is on it."""

from importlib.util import find_spec
from typing import Annotated

import typer

from ..console import one_line_errors

_DEFAULT_MODEL = 'sknet_atto.shapes'


def demo(
    model: Annotated[str, typer.Option(help='Model that is chosen at first.')] = _DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help='Address to bind to; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help='The first free one from 7860 if not given.')
    ] = None,
) -> None:
    """Serve a page on which pictures are classified and the attention of every unit is seen."""
    with one_line_errors():
        if find_spec('gradio') is None:
            raise ValueError('The page is served by gradio, which is not installed: pip install "timm_sk[demo]".')
        from ..demo import serve

        serve(model, host=host, port=port)
