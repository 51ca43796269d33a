"""Cancels tasks until they have ended."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_RETRY_INTERVAL: Final = 0.1  # seconds


async def end(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancel tasks and wait until they have ended.

    A task that continues is cancelled again: a cancellation may be lost if it arrives together with the awaited result.
    This happens in asyncio.wait_for() of Python 3.11, which redis-py uses.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_INTERVAL)
