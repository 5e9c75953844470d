"""A bound on what one request may send: gradio bounds uploaded files, but not other bodies, kept in memory."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that answers 413 to bodies that are announced as too long, and reads no further in others.

    Args:
        app: What is served.
        most: Bytes.
    """

    def __init__(self, app: ASGIApp, most: int):
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        announced = Headers(scope=scope).get('content-length', '0')
        if announced.isdecimal() and int(announced) > self._most:
            return await PlainTextResponse(self._refusal, 413)(scope, receive, send)
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get('body', b''))
            if read > self._most:
                raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, bounded, send)

    @property
    def _refusal(self) -> str:
        return f'A request may have {self._most} bytes at most.'
