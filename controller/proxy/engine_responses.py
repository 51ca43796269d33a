"""Judges the responses of engines: which of them may be retried, count as failures, and reach the client."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from controller.domain.errors import StreamBroken, WorkerBusy, WorkerError, WorkerRefused, WorkerUnreachable
from controller.upstream.engines.verdicts import Verdict, judge, may_be_retried
from controller.upstream.response import WorkerResponse

_MAX_JUDGED: Final = 64 * 1024  # bytes of an error. A longer one is passed on without a retry


def is_failure(error: WorkerError) -> bool:
    """Return True if an error deprioritises the engine. A silent engine may have a long queue."""
    if isinstance(error, WorkerRefused):
        return not isinstance(error, WorkerBusy)
    return isinstance(error, WorkerUnreachable | StreamBroken)


def more_telling(before: WorkerError | None, error: WorkerError) -> WorkerError:
    """Return the one of two failures that the client gets: the last response of an engine, if there was any."""
    return before if isinstance(before, WorkerRefused) and not isinstance(error, WorkerRefused) else error


def counted_outcome(outcome: str, status: int) -> str:
    """Return the outcome of a request as the metrics count it. status: of the response."""
    if outcome != "complete" or status < 400:
        return outcome
    return "engine_error" if status >= 500 else "client_error"


async def judged_pieces(response: WorkerResponse) -> AsyncGenerator[bytes]:
    """Return the body of a response. Raises WorkerBusy or WorkerRefused if another engine might do better."""
    pieces = response.pieces()
    if not may_be_retried(response.status):
        return pieces
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) > _MAX_JUDGED:
            return _joined(body, pieces)
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
