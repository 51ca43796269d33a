"""The routes of FastChat's workers, which are forwarded to a worker of the model.

To clients and parent controllers, the whole cluster is one worker. FastChat's workers return errors with status 200 and
an `error_code` and a `text` in the body. So these fields are in our errors too, even where the status is an error.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.responses import Response

from controller.availability.snapshot import MaybeStale
from controller.domain.errors import LoopDetected, NoWorker, StoreError, TooManyForwards, WorkerError, WorkerRefused
from controller.domain.headers import is_encoded, without_body
from controller.proxy.forwarded import Forwarded
from controller.tasks import in_thread_if_large
from controller.web.asgi.endpoint import degraded
from controller.web.errors import retry_after, status_of
from controller.web.routes.forwarded import ForwardedResponse, with_content_type, with_headers
from controller.web.schemas import fastchat as schemas
from controller.web.services import Services

_FRAMES: Final = b"application/octet-stream"  # frames are not JSON, and no type is registered for them
_Passed = Mapping[str, str]
_Forward = Callable[[str, str, bytes, str, _Passed], Awaitable[MaybeStale[Forwarded]]]


async def worker_generate_stream(services: Services, _: str, body: bytes, hops: str, passed: _Passed) -> Response:
    """Forward a request to a worker of its model, and stream the worker's frames back.

    An error is a frame with status 200, because FastChat's clients read nothing else. A parent controller, which sends
    a hop list, also gets an error status, so that it retries on another of its workers. An error frame of a controller
    below is passed on.
    """
    model = await _model(body)
    try:
        frames, snapshot_age = await services.forwarder.stream(model, body, hops, passed)
    except (NoWorker, StoreError):
        return _frame(schemas.NO_WORKER, 503 if hops else 200)
    except TooManyForwards as error:  # FastChat's clients read the frame whatever the status is
        return with_headers(retry_after(error), _frame(schemas.ENGINE_OVERLOADED, 503))
    except WorkerRefused as error:
        status = (error.status if error.status >= 500 else 502) if hops else 200
        if error.body.endswith(b"\0") and not is_encoded(error.headers):
            headers = with_content_type(error.headers, status, _FRAMES)
            return with_headers(headers, Response(error.body, status))
        return with_headers(without_body(error.headers), _frame(schemas.WORKER_TIMEOUT, status))
    except WorkerError:
        return _frame(schemas.WORKER_TIMEOUT, 502 if hops else 200)
    except LoopDetected as error:
        return _frame(schemas.INTERNAL_ERROR, status_of(error) if hops else 200, str(error))
    headers = (*with_content_type(frames.headers, frames.status, _FRAMES), *degraded(snapshot_age))
    final_frame = None if frames.encoded else schemas.error_frame(schemas.WORKER_TIMEOUT)
    return ForwardedResponse(frames, headers, final_frame)


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
    model = await _model(body)
    try:
        return await _call(forward, model, path, body, hops, passed)
    except (NoWorker, StoreError, TooManyForwards, WorkerError, LoopDetected) as error:
        return _error(error, fastchat_compatible=not hops)


async def _model(body: bytes) -> str:
    return await in_thread_if_large(len(body), lambda: schemas.parse_model(body))


async def _call(forward: _Forward, model: str, path: str, body: bytes, hops: str, passed: _Passed) -> Response:
    try:
        forwarded, snapshot_age = await forward(model, path, body, hops, passed)
    except WorkerRefused as error:
        return with_headers(with_content_type(error.headers, error.status), Response(error.body, error.status))
    headers = with_content_type(forwarded.headers, forwarded.status)
    return ForwardedResponse(forwarded, (*headers, *degraded(snapshot_age)))


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
    return with_headers(retry_after(error), response)
