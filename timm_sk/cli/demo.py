"""`timm-sk demo`: a page that shows the attention of selective-kernel units; see docs/demo.md."""

from typing import Annotated

import typer

from ..console import one_line_errors
from ..optional_packages import require_package

_DEFAULT_MODEL = 'sknet_atto.shapes'


def demo(
    model: Annotated[str, typer.Option(help='Initial model: architecture or arch.tag.')] = _DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help='Address to bind to; 0.0.0.0 accepts other machines.')] = '127.0.0.1',
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help='Port; the first free one from 7860 by default.')
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar='NAME', help='Name of this server in its address; may be repeated.')
    ] = None,
) -> None:
    """Serve a web page that classifies images and shows the attention of every unit."""
    with one_line_errors():
        require_package('gradio', 'demo')
        from ..demo import serve

        serve(model, host=host, port=port, allowed_hosts=allowed_host or ())
