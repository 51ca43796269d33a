"""Judges the responses of engines: which of them may be retried, count as failures, and reach the client."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from controller.domain.errors import (
    StreamBroken,
    WorkerBusy,
    WorkerError,
    WorkerRedirected,
    WorkerRefused,
    WorkerRejectsKey,
    WorkerSilent,
    WorkerUnreachable,
)
from controller.upstream.engines.refusals import REFUSED_KEY
from controller.upstream.engines.verdicts import Verdict, judge
from controller.upstream.engines.verdicts import may_be_retried as is_judged
from controller.upstream.response import WorkerResponse

_MAX_JUDGED: Final = 64 * 1024  # bytes of an error. A longer one is passed on without a retry


def is_failure(error: WorkerError) -> bool:
    """Return True if an error deprioritises the engine. A silent engine may have a long queue."""
    if isinstance(error, WorkerRefused):
        return not isinstance(error, WorkerBusy)
    return isinstance(error, WorkerUnreachable | StreamBroken | WorkerRejectsKey)


def is_failure_of_trial(error: WorkerError) -> bool:
    """Return True if an error makes a trial fail. An engine that has hung stays silent."""
    return is_failure(error) or isinstance(error, WorkerSilent)


def may_be_retried(error: WorkerError) -> bool:
    """Return False if another engine would do the same."""
    return not isinstance(error, WorkerRedirected)


def more_telling(before: WorkerError | None, error: WorkerError) -> WorkerError:
    """Return the one of two failures that the client gets: the last response of an engine, if there was any."""
    return before if isinstance(before, WorkerRefused) and not isinstance(error, WorkerRefused) else error


def failed_outcome(error: WorkerError) -> str:
    """Return the outcome of a request without a usable response, as the metrics count it."""
    if isinstance(error, WorkerBusy):
        return "busy"
    return "engine_error" if isinstance(error, WorkerRefused | WorkerRejectsKey | WorkerRedirected) else "broken"


def counted_outcome(outcome: str, status: int) -> str:
    """Return the outcome of a request as the metrics count it. status: of the response."""
    if outcome != "complete" or status < 400:
        return outcome
    return "engine_error" if status >= 500 else "client_error"


def unusable_response(source: str, status: int) -> WorkerError | None:
    """Return an error if a response must not reach the client, whatever its content is."""
    if status in REFUSED_KEY:
        return WorkerRejectsKey(
            f"{source} returned status {status}: it rejects the controller's key, or requires one. Register the engine "
            "with its key, or write the key to the file of --upstream-tokens-file."
        )
    if 300 <= status <= 399 and status != 304:
        return WorkerRedirected(
            f"{source} returned status {status}, a redirect. It would lead the client to the engine itself, past the "
            "controller. Register the address to which it leads, or use the path that the engine has."
        )
    return None


async def judged_pieces(response: WorkerResponse, time_limit: float) -> AsyncGenerator[bytes]:
    """Return the body of a response.

    time_limit: for reading the whole of an error, in seconds. An engine that needs longer counts as silent.

    Raises WorkerBusy or WorkerRefused if another engine might do better, WorkerRejectsKey, WorkerRedirected and
    WorkerSilent.
    """
    unusable = unusable_response(response.url, response.status)
    if unusable is not None:
        raise unusable
    pieces = response.pieces()
    if not is_judged(response.status):
        return pieces
    body = b""
    timer = asyncio.get_running_loop().call_later(time_limit, response.fail, TimeoutError())
    try:
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_JUDGED:
                return _joined(body, pieces)
    finally:
        timer.cancel()
    verdict = judge(response.status, response.headers, body)
    if verdict is Verdict.REQUEST:
        return _joined(body, pieces)
    kind = WorkerBusy if verdict is Verdict.BUSY else WorkerRefused
    raise kind(f"{response.url} returned status {response.status}.", response.status, response.headers, body)


async def _joined(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
