"""What clients and parents send through: requests to a worker of a model, which of ours it is they leave to us.

To them the whole cluster is one worker. FastChat's workers answer errors with 200 and tell of them in the body, so
`error_code` and `text` stand there, too, where the status already says it.
"""

import logging
import re
from typing import Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from controller.domain.errors import InvalidInput, LoopDetected, NoWorker, StoreError, WorkerError
from controller.service import Controller
from controller.web import wire
from controller.web.endpoint import degraded
from controller.web.errors import error_body, status_of

logger = logging.getLogger("controller.web")

# What FastChat's workers and clients know of; other paths are forwarded, too, for workers of kinds that they do not.
WORKER_ROUTES: Final = (
    "/worker_generate",
    "/worker_get_embeddings",
    "/count_token",
    "/worker_get_conv_template",
    "/model_details",
)
_PATH: Final = re.compile(r"/[A-Za-z0-9_-][A-Za-z0-9_./-]{0,126}\Z")


class ForwardPlane:
    """The handlers of the routes that are a worker's; each takes path, body and way of a request."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def worker_generate_stream(self, _: str, body: bytes, way: str) -> Response:
        """Forward a request to a worker of its model, and the worker's frames back as they come."""
        model = wire.parse_model(body)
        try:
            frames, snapshot_age = await self._controller.stream(model, body, way)
        except (NoWorker, StoreError):
            return Response(wire.error_frame(wire.NO_WORKER))
        except LoopDetected as error:
            return Response(wire.error_frame(wire.INTERNAL_ERROR, str(error)))
        response = _Frames(frames)
        response.raw_headers.extend(degraded(snapshot_age))
        return response

    async def worker_call(self, path: str, body: bytes, way: str) -> Response:
        """Forward any other request of FastChat's to a worker of its model."""
        model = wire.parse_model(body)
        try:
            return await self._call(model, path, body, way)
        except (NoWorker, StoreError) as error:
            return _error(error, 503, wire.NO_WORKER)

    async def unknown_call(self, path: str, body: bytes, way: str) -> Response:
        """Forward a request that no route of ours is for, if it is for a worker: if `model` names one."""
        try:
            model = wire.parse_model(body) if _PATH.match(path) and ".." not in path else ""
            return await self._call(model, path, body, way)
        except (NoWorker, InvalidInput):
            return Response(error_body("not_found", f"There is no route {path}."), 404, media_type="application/json")

    async def _call(self, model: str, path: str, body: bytes, way: str) -> Response:
        try:
            passed, snapshot_age = await self._controller.call(model, path, body, way)
        except WorkerError as error:
            return _error(error, 502, wire.WORKER_TIMEOUT)
        except LoopDetected as error:
            return _error(error, status_of(error), wire.INTERNAL_ERROR)
        response = _Passed(passed.body, passed.status, {"content-type": passed.content_type})
        response.raw_headers.extend(degraded(snapshot_age))
        return response


class _Passed(StreamingResponse):
    """A worker's answer; where it breaks off, ours does, so that nobody takes a part of it for all."""

    async def stream_response(self, send: Send) -> None:
        """Send it as it comes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except WorkerError as error:
            await self.broken(error, send)
        else:
            await send({"type": "http.response.body", "body": b""})

    async def broken(self, error: WorkerError, _: Send, /) -> None:
        """End without an end."""
        logger.warning("An answer from a worker broke off: %s", error)


class _Frames(_Passed):
    """Frames; when they break off, an error is the last one."""

    async def broken(self, _: WorkerError, send: Send, /) -> None:
        """End with an error."""
        await send({"type": "http.response.body", "body": wire.error_frame(wire.WORKER_TIMEOUT)})


def _error(error: StoreError | NoWorker | WorkerError | LoopDetected, status: int, error_code: int) -> Response:
    return Response(wire.worker_error(error.code, str(error), error_code), status, media_type="application/json")
