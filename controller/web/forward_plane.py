"""What clients and parents send through: requests to a worker of a model, which of ours it is they leave to us.

To them the whole cluster is one worker. FastChat's workers answer errors with 200 and tell of them in the body, so
`error_code` and `text` stand there, too, where the status already says it.
"""

import re
from contextlib import aclosing
from typing import ClassVar, Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from controller.domain.errors import InvalidInput, LoopDetected, NoWorker, StoreError, WorkerError, WorkerRefused
from controller.domain.headers import Headers, is_encoded, without_body, without_length
from controller.forwarding import Forwarded
from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import degraded
from controller.web.errors import error_body, status_of

# What FastChat's workers and clients know of; other paths are forwarded, too, for workers of kinds that they do not.
WORKER_ROUTES: Final = (
    "/worker_generate",
    "/worker_get_embeddings",
    "/count_token",
    "/worker_get_conv_template",
    "/model_details",
)
_UNBUFFERED: Final = (b"x-accel-buffering", b"no")  # nginx would hold back frames
_PATH: Final = re.compile(r"/[A-Za-z0-9_-][A-Za-z0-9_./-]{0,126}\Z")


class ForwardPlane:
    """The handlers of the routes that are a worker's; each takes path, body and way of a request."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def worker_generate_stream(self, _: str, body: bytes, way: str) -> Response:
        """Forward a request to a worker of its model, and the worker's frames back as they come.

        An error is a frame, whatever its status: FastChat's clients look at nothing else. A controller above us, which
        sends its way, also gets a status that makes it try another of its workers. What a controller below us says in
        such a frame is passed on.
        """
        model = wire.parse_model(body)
        try:
            frames, snapshot_age = await self._controller.stream(model, body, way)
        except (NoWorker, StoreError):
            return Response(wire.error_frame(wire.NO_WORKER), 503 if way else 200)
        except WorkerRefused as error:
            status = (error.status if error.status >= 500 else 502) if way else 200
            if error.body.endswith(b"\0") and not is_encoded(error.headers):
                return _with(error.headers, Response(error.body, status))
            return _with(without_body(error.headers), Response(wire.error_frame(wire.WORKER_TIMEOUT), status))
        except WorkerError:
            return Response(wire.error_frame(wire.WORKER_TIMEOUT), 502 if way else 200)
        except LoopDetected as error:
            return Response(wire.error_frame(wire.INTERNAL_ERROR, str(error)), status_of(error) if way else 200)
        return (_Passed if frames.encoded else _Frames)(frames, snapshot_age)

    async def worker_call(self, path: str, body: bytes, way: str) -> Response:
        """Forward any other request of FastChat's to a worker of its model.

        An error of ours has the status 200, too, unless a controller above us sends its way: FastChat's API server
        takes nothing from an answer with another one, and fails itself.
        """
        model = wire.parse_model(body)
        try:
            return await self._call(model, path, body, way)
        except (NoWorker, StoreError, WorkerError, LoopDetected) as error:
            return _told(error, as_stock_workers=not way)

    async def unknown_call(self, path: str, body: bytes, way: str) -> Response:
        """Forward a request that no route of ours is for, if it is for a worker: if `model` names one.

        A controller above us has found such a worker, which is gone: it is told so, and tries another of its own.
        """
        try:
            model = wire.parse_model(body) if _PATH.match(path) and ".." not in path else ""
            return await self._call(model, path, body, way)
        except (NoWorker, InvalidInput) as error:
            if way and isinstance(error, NoWorker):
                return _told(error)
            return Response(error_body("not_found", f"There is no route {path}."), 404, media_type="application/json")
        except (WorkerError, LoopDetected) as error:
            return _told(error)

    async def _call(self, model: str, path: str, body: bytes, way: str) -> Response:
        try:
            forwarded, snapshot_age = await self._controller.call(model, path, body, way)
        except WorkerRefused as error:
            return _with(_typed(error.headers, error.status), Response(error.body, error.status))
        return _Passed(forwarded, snapshot_age)


class _Passed(StreamingResponse):
    """A worker's answer; where it breaks off, ours does, so that nobody takes a part of it for all."""

    last_words: ClassVar[bytes | None] = None

    def __init__(self, forwarded: Forwarded, snapshot_age: float | None) -> None:
        self._forwarded = forwarded
        self._pieces = forwarded.pieces()
        super().__init__(self._pieces, forwarded.status)
        headers = forwarded.headers if self.last_words is None else without_length(forwarded.headers)
        self.raw_headers = [*_typed(headers, forwarded.status), _UNBUFFERED, *degraded(snapshot_age)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, for as long as the client is there."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._forwarded.close()

    async def stream_response(self, send: Send) -> None:
        """Send it as it comes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except WorkerError:
            if self.last_words is not None:
                await send({"type": "http.response.body", "body": self.last_words})
        else:
            await send({"type": "http.response.body", "body": b""})


class _Frames(_Passed):
    """Frames; where they break off, an error is the last one."""

    last_words = wire.error_frame(wire.WORKER_TIMEOUT)


def _typed(headers: Headers, status: int) -> Headers:
    """Return the headers with a Content-Type: workers that give none mean JSON."""
    if status in (204, 304) or any(name == b"content-type" for name, _ in headers):
        return headers
    return (*headers, (b"content-type", b"application/json"))


def _with(headers: Headers, response: Response) -> Response:
    response.raw_headers.extend(headers)
    return response


def _told(error: StoreError | NoWorker | WorkerError | LoopDetected, *, as_stock_workers: bool = False) -> Response:
    """An error in the place of an answer, in our form and in FastChat's."""
    if isinstance(error, LoopDetected):
        status, error_code = status_of(error), wire.INTERNAL_ERROR
    elif isinstance(error, WorkerError):
        status, error_code = 502, wire.WORKER_TIMEOUT
    else:
        status, error_code = 503, wire.NO_WORKER
    body = wire.worker_error(error.code, str(error), error_code)
    return Response(body, 200 if as_stock_workers else status, media_type="application/json")
