"""What other sites show of a link to the page: its title, a description and an image, in place of gradio's."""

import re
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import DESCRIPTION, TITLE

IMAGE = Path(__file__).with_name('share.png')
_OTHERS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')
_TAGS = """<meta name="description" content="{description}">
<meta property="og:type" content="website">
<meta property="og:url" content="{url}">
<meta property="og:title" content="{title}">
<meta property="og:description" content="{description}">
<meta property="og:image" content="{url}{image}">
<meta name="twitter:card" content="summary_large_image">
"""


class ShareMetadata:
    """ASGI middleware that replaces the share metadata of the page, and serves its image."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        shared = dict(title=TITLE, description=DESCRIPTION, url=str(Request(scope).base_url), image=IMAGE.name)
        tags = _TAGS.format_map({name: escape(text) for name, text in shared.items()}).encode()
        page = _OTHERS.sub(b'', page).replace(b'<head>', b'<head>' + tags, 1)
        headers = {name.decode(): value.decode() for name, value in start['headers'] if name != b'content-length'}
        await Response(page, start['status'], headers)(scope, receive, send)
