"""What other sites show of a link to the page: its title, a description and an image, in place of gradio's."""

import re
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IMAGE = Path(__file__).with_name('share.png')
_IMAGE_PATH = '/share.png'
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
        if scope['type'] == 'http' and scope['path'] == _IMAGE_PATH:
            return await FileResponse(IMAGE)(scope, receive, send)
        if scope['type'] != 'http' or scope['path'] != '/' or scope['method'] != 'GET':
            return await self._app(scope, receive, send)
        start: Message = {}
        body = b''

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message['type'] == 'http.response.start':
                start = message
                return
            body += message.get('body', b'')
            if not message.get('more_body'):
                body = _OTHERS.sub(b'', body).replace(b'<head>', b'<head>' + self._tags(scope), 1)
                others = [(name, value) for name, value in start['headers'] if name.lower() != b'content-length']
                await send({**start, 'headers': [*others, (b'content-length', str(len(body)).encode())]})
                await send({'type': 'http.response.body', 'body': body})

        await self._app(scope, receive, rewrite)

    def _tags(self, scope: Scope) -> bytes:
        address = escape(str(Request(scope).base_url).rstrip('/'))
        tags = [f'<meta name="description" content="{self._description}">']
        properties = dict(
            type='website',
            url=address,
            title=self._title,
            description=self._description,
            image=address + _IMAGE_PATH,
        )
        tags += [f'<meta property="og:{name}" content="{content}">' for name, content in properties.items()]
        return '\n'.join([*tags, '<meta name="twitter:card" content="summary_large_image">']).encode()
