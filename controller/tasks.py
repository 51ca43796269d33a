"""Cancels tasks until they have ended."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

_AGAIN: Final = 0.1  # seconds


async def end(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancel tasks and wait for their end.

    A cancellation that arrives at the same time as the awaited result may be lost, for example in asyncio.wait_for()
    of Python 3.11, which redis-py uses. So a task that goes on is cancelled again.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN)
