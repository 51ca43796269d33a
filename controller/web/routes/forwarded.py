"""Passes the responses of workers to clients, for the routes of FastChat and of OpenAI."""

from contextlib import aclosing
from typing import Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from controller.domain.errors import WorkerError
from controller.domain.headers import Headers, without_length
from controller.proxy.forwarded import Forwarded

_UNBUFFERED: Final = (b"x-accel-buffering", b"no")  # otherwise nginx holds frames back
_JSON: Final = b"application/json"


class ForwardedResponse(StreamingResponse):
    """A worker's response. If the worker disconnects early, the client's connection is closed, so that it notices.

    headers: headers of the response. X-Accel-Buffering is added.
    final_frame: sent if the worker disconnects early. The response then ends as if it were complete. None if nothing
        can be appended to the body.
    """

    def __init__(self, forwarded: Forwarded, headers: Headers, final_frame: bytes | None = None) -> None:
        # without super().__init__(), which writes headers that are then replaced
        self._forwarded = forwarded
        self._final_frame = final_frame
        self.status_code = forwarded.status
        self.background = None
        self.raw_headers = [*(headers if final_frame is None else without_length(headers)), _UNBUFFERED]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until its end, or until the client disconnects."""
        try:
            if self._forwarded.is_whole:  # it waits for nothing, so no task has to watch the client
                await self._start(send)
                await send({"type": "http.response.body", "body": await self._forwarded.take_whole()})
            else:
                await super().__call__(scope, receive, send)
        finally:
            self._forwarded.close()

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def stream_response(self, send: Send) -> None:
        """Send the response as it arrives."""
        await self._start(send)
        try:
            async with aclosing(self._forwarded.pieces()) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except WorkerError:
            if self._final_frame is not None:
                await send({"type": "http.response.body", "body": self._final_frame})
        else:
            await send({"type": "http.response.body", "body": b""})


def with_content_type(headers: Headers, status: int, content_type: bytes = _JSON) -> Headers:
    """Return the headers, with `content_type` if they have no Content-Type. A 204 or a 304 gets none."""
    if status in (204, 304) or any(name == b"content-type" for name, _ in headers):
        return headers
    return (*headers, (b"content-type", content_type))


def with_headers(headers: Headers, response: Response) -> Response:
    """Return the response with more headers."""
    response.raw_headers.extend(headers)
    return response
