"""What other sites show of a link to the page: its title, a description and an image, in place of gradio's."""

import re
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IMAGE = Path(__file__).with_name('share.png')
_OTHERS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')


class ShareMetadata:
    """ASGI middleware that replaces the share metadata of the page, and serves its image.

    Args:
        app: Application.
        title: Title of the page.
        description: One sentence on it.
    """

    def __init__(self, app: ASGIApp, title: str, description: str) -> None:
        self._app, self._title, self._description = app, escape(title), escape(description)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http' or scope['method'] != 'GET' or scope['path'] not in ('/', f'/{IMAGE.name}'):
            return await self._app(scope, receive, send)
        if scope['path'] != '/':
            return await FileResponse(IMAGE)(scope, receive, send)
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        start, page = messages[0], b''.join(message.get('body', b'') for message in messages)
        page = _OTHERS.sub(b'', page).replace(b'<head>', b'<head>' + self._tags(scope), 1)
        headers = {name.decode(): value.decode() for name, value in start['headers'] if name != b'content-length'}
        await Response(page, start['status'], headers)(scope, receive, send)

    def _tags(self, scope: Scope) -> bytes:
        address = escape(str(Request(scope).base_url))
        shared = dict(
            type='website', url=address, title=self._title, description=self._description, image=address + IMAGE.name
        )
        tags = [f'<meta property="og:{name}" content="{content}">' for name, content in shared.items()]
        card = '<meta name="twitter:card" content="summary_large_image">'
        return ''.join([f'<meta name="description" content="{self._description}">', *tags, card]).encode()
