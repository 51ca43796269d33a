"""The routes that are forwarded to a worker of a model.

To clients and parent controllers, the whole cluster is one worker. FastChat's workers return errors with status 200 and
an `error_code` and a `text` in the body. So these fields are in our errors too, even where the status is an error.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import ClassVar, Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from controller.availability.snapshot import MaybeStale
from controller.domain.errors import (
    InvalidInput,
    LoopDetected,
    NoWorker,
    StoreError,
    TooManyForwards,
    WorkerError,
    WorkerRefused,
)
from controller.domain.headers import Headers, is_encoded, without_body, without_length
from controller.proxy.forwarded import Forwarded
from controller.web.asgi.endpoint import degraded
from controller.web.errors import error_body, retry_after, status_of
from controller.web.schemas import fastchat as schemas
from controller.web.services import Services

_UNBUFFERED: Final = (b"x-accel-buffering", b"no")  # otherwise nginx holds frames back
_JSON: Final = b"application/json"
_FRAMES: Final = b"application/octet-stream"  # frames are not JSON, and no type is registered for them
_Passed = Mapping[str, str]
_Forward = Callable[[str, str, bytes, str, _Passed], Awaitable[MaybeStale[Forwarded]]]


async def worker_generate_stream(services: Services, _: str, body: bytes, hops: str, passed: _Passed) -> Response:
    """Forward a request to a worker of its model, and stream the worker's frames back.

    An error is a frame with status 200, because FastChat's clients read nothing else. A parent controller, which sends
    a hop list, also gets an error status, so that it retries on another of its workers. An error frame of a controller
    below is passed on.
    """
    model = schemas.parse_model(body)
    try:
        frames, snapshot_age = await services.forwarder.stream(model, body, hops, passed)
    except (NoWorker, StoreError):
        return _frame(schemas.NO_WORKER, 503 if hops else 200)
    except TooManyForwards as error:  # FastChat's clients read the frame whatever the status is
        return _with_headers(retry_after(error), _frame(schemas.ENGINE_OVERLOADED, 503))
    except WorkerRefused as error:
        status = (error.status if error.status >= 500 else 502) if hops else 200
        if error.body.endswith(b"\0") and not is_encoded(error.headers):
            headers = _with_content_type(error.headers, status, _FRAMES)
            return _with_headers(headers, Response(error.body, status))
        return _with_headers(without_body(error.headers), _frame(schemas.WORKER_TIMEOUT, status))
    except WorkerError:
        return _frame(schemas.WORKER_TIMEOUT, 502 if hops else 200)
    except LoopDetected as error:
        return _frame(schemas.INTERNAL_ERROR, status_of(error) if hops else 200, str(error))
    return (_ForwardedResponse if frames.encoded else _FrameResponse)(frames, snapshot_age, _FRAMES)


def _frame(error_code: int, status: int, text: str = schemas.SERVER_ERROR_MSG) -> Response:
    """Return a stream of one frame, which describes an error."""
    return Response(schemas.error_frame(error_code, text), status, media_type=_FRAMES.decode())


async def worker_generate(services: Services, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    """Forward a request that its worker answers as a whole, to a worker of its model.

    Our errors have the status 200 too, unless a parent controller sent the request: FastChat's API server fails at any
    other status.
    """
    return await _fastchat_call(services.forwarder.generate, path, body, hops, passed)


async def worker_lookup(services: Services, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    """Forward a request that is no load to any worker of its model. Errors are as for /worker_generate."""
    return await _fastchat_call(services.forwarder.look_up, path, body, hops, passed)


async def _fastchat_call(forward: _Forward, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    model = schemas.parse_model(body)
    try:
        return await _call(forward, model, path, body, hops, passed)
    except (NoWorker, StoreError, TooManyForwards, WorkerError, LoopDetected) as error:
        return _error(error, fastchat_compatible=not hops)


async def other_call(services: Services, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    """Forward a request for a path of `--forward-paths`, if a worker serves the model in its body. Otherwise 404.

    If a parent controller forwarded the request, return an error status so that it retries elsewhere.
    """
    if not services.forward_paths.allows(path):
        return _not_found(path)
    try:
        return await _call(services.forwarder.call, schemas.parse_model(body), path, body, hops, passed)
    except (NoWorker, InvalidInput) as error:
        return _error(error) if hops and isinstance(error, NoWorker) else _not_found(path)
    except (TooManyForwards, WorkerError, LoopDetected) as error:
        return _error(error)


def _not_found(path: str) -> Response:
    return Response(error_body("not_found", f"There is no route {path}."), 404, media_type="application/json")


async def _call(forward: _Forward, model: str, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    try:
        forwarded, snapshot_age = await forward(model, path, body, hops, passed)
    except WorkerRefused as error:
        return _with_headers(_with_content_type(error.headers, error.status), Response(error.body, error.status))
    return _ForwardedResponse(forwarded, snapshot_age)


class _ForwardedResponse(StreamingResponse):
    """A worker's response. If the worker disconnects early, we do too, so that the client notices the missing part."""

    final_frame: ClassVar[bytes | None] = None

    def __init__(self, forwarded: Forwarded, snapshot_age: float | None, content_type: bytes = _JSON) -> None:
        self._forwarded = forwarded
        self._pieces = forwarded.pieces()
        super().__init__(self._pieces, forwarded.status)
        headers = forwarded.headers if self.final_frame is None else without_length(forwarded.headers)
        headers = _with_content_type(headers, forwarded.status, content_type)
        self.raw_headers = [*headers, _UNBUFFERED, *degraded(snapshot_age)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until its end, or until the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._forwarded.close()

    async def stream_response(self, send: Send) -> None:
        """Send the response as it arrives."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except WorkerError:
            if self.final_frame is not None:
                await send({"type": "http.response.body", "body": self.final_frame})
        else:
            await send({"type": "http.response.body", "body": b""})


class _FrameResponse(_ForwardedResponse):
    """A stream of frames. If the worker disconnects early, the final frame is an error."""

    final_frame = schemas.error_frame(schemas.WORKER_TIMEOUT)


def _with_content_type(headers: Headers, status: int, content_type: bytes = _JSON) -> Headers:
    """Return the headers with a Content-Type, which is `content_type` if the worker sent none."""
    if status in (204, 304) or any(name == b"content-type" for name, _ in headers):
        return headers
    return (*headers, (b"content-type", content_type))


def _with_headers(headers: Headers, response: Response) -> Response:
    response.raw_headers.extend(headers)
    return response


def _error(
    error: StoreError | NoWorker | TooManyForwards | WorkerError | LoopDetected, *, fastchat_compatible: bool = False
) -> Response:
    """Return an error response with the fields of our format and of FastChat's."""
    if isinstance(error, LoopDetected):
        status, error_code = status_of(error), schemas.INTERNAL_ERROR
    elif isinstance(error, WorkerError):
        status, error_code = 502, schemas.WORKER_TIMEOUT
    elif isinstance(error, TooManyForwards):
        status, error_code = status_of(error), schemas.ENGINE_OVERLOADED
    else:
        status, error_code = 503, schemas.NO_WORKER
    body = schemas.worker_error(error.code, str(error), error_code)
    response = Response(body, 200 if fastchat_compatible else status, media_type="application/json")
    return _with_headers(retry_after(error), response)
