"""Forwards requests of OpenAI's kind to workers of FastChat's protocol, which may have routes of their own."""

import asyncio
import logging
from typing import Final

from controller.availability.snapshot import MaybeStale
from controller.domain.errors import NoWorker, WorkerRefused, WrongProtocol
from controller.proxy.engine_responses import unusable_response
from controller.proxy.forwarded import Forwarded
from controller.proxy.forwarder import Forwarder
from controller.proxy.gateway_request import GatewayRequest
from controller.proxy.tries import Tries
from controller.tasks import in_thread_if_large
from controller.upstream.engines.refusals import NO_ROUTE
from controller.upstream.engines.verdicts import is_openai_error

logger = logging.getLogger("controller")

_MAX_ERROR: Final = 64 * 1024  # bytes


class FastChatModels:
    """The models that only workers of FastChat's protocol serve.

    FastChat's own workers have no route of OpenAI's kind. Clusters below this one and other workers may have some.

    worker_timeout: time limit for reading an error of a worker, in seconds.
    """

    def __init__(self, forwarder: Forwarder, worker_timeout: float) -> None:
        self._forwarder = forwarder
        self._worker_timeout = worker_timeout

    async def call(
        self, model: str, request: GatewayRequest, tries: Tries
    ) -> MaybeStale[Forwarded | WorkerRefused] | None:
        """Return the response of a worker to a request, or None if no live worker serves the model.

        Raises WrongProtocol if the worker has no such route, WorkerRejectsKey and WorkerRedirected, and otherwise as
        Forwarder.call().
        """
        path, field = request.path, request.field
        body = await in_thread_if_large(len(field.body), lambda: field.renamed(model))
        try:
            forwarded, snapshot_age = await self._forwarder.call(
                model, path, body, request.hops, request.passed, tries=tries
            )
        except NoWorker:
            return None
        except WorkerRefused as error:
            if error.status in NO_ROUTE and not is_openai_error(error.body):
                raise _wrong_protocol(model, path) from error
            raise
        unusable = unusable_response(f"A worker of the model {model[:100]!r}", forwarded.status)
        if unusable is not None:
            await _whole(forwarded, self._worker_timeout)
            logger.warning("A response is not passed on: %(reason)s", {"reason": unusable})
            raise unusable
        if forwarded.status not in NO_ROUTE:
            return MaybeStale(forwarded, snapshot_age)
        refused = await _whole(forwarded, self._worker_timeout)
        if refused is None or not is_openai_error(refused.body):
            raise _wrong_protocol(model, path)
        return MaybeStale(refused, snapshot_age)


async def _whole(forwarded: Forwarded, time_limit: float) -> WorkerRefused | None:
    """Return an error response that was read whole and closed. None if it is long.

    Raises WorkerError, which is WorkerSilent after `time_limit` seconds.
    """
    body = b""
    timer = asyncio.get_running_loop().call_later(time_limit, forwarded.time_out)
    try:
        async for piece in forwarded.pieces():
            body += piece
            if len(body) > _MAX_ERROR:
                return None
    finally:
        timer.cancel()
        forwarded.close()
    return WorkerRefused(f"A worker returned status {forwarded.status}.", forwarded.status, forwarded.headers, body)


def _wrong_protocol(model: str, path: str) -> WrongProtocol:
    return WrongProtocol(
        f"The model {model[:100]!r} is served by workers of FastChat's protocol only, and they have no route {path}. "
        "To chat with FastChat's workers, use FastChat's OpenAI API server: start "
        "`python3 -m fastchat.serve.openai_api_server --controller-address` with the address of this controller."
    )
