"""The access log: one line for each request, when its response ends."""

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller.security.access import Access

logger = logging.getLogger("controller.access")

_QUOTES: Final = str.maketrans({'"': "%22", "\\": "%5C"})
_TEXT: Final = '%(client)s "%(method)s %(path)s" %(status)d, %(bytes)d bytes in %(duration).4f s'


class AccessLog:
    """Logs the requests to an application. It is not there if --access-log is off, so it costs nothing then.

    The line has the path as it was sent, so that no encoded quote ends it in the text. It lacks the query, which could
    contain a secret. It has the name of the token, not the token.
    Responses that the HTTP protocol sends by itself, such as 431, are not logged.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and log it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        response = _Response(send)
        try:
            await self._app(scope, receive, response.send)
        finally:
            self._log(scope, response, time.perf_counter() - began)
        return None

    def _log(self, scope: Scope, response: "_Response", duration: float) -> None:
        token = self._access.token(scope)
        text = _TEXT + (" by token %(token)s" if token else "") + ("" if response.complete else ", incomplete")
        logger.info(
            text,
            {
                "client": self._access.address(scope) or "unknown",
                "method": scope["method"],
                "path": scope["raw_path"].decode("latin-1").translate(_QUOTES),
                "status": response.status,
                "bytes": response.size,
                "duration": round(duration, 6),
                "token": token.name if token else "",
                "complete": response.complete,
            },
        )


class _Response:
    """The status of a response, 0 if none was sent, the size of its body in bytes, and whether the body is complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.size = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.size += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
