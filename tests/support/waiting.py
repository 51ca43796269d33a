"""Waits for conditions, so that tests need no fixed sleeps."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def wait_until(
    predicate: Callable[[], Any | Awaitable[Any]], description: str, timeout: float = 60.0, interval: float = 0.01
) -> Any:
    """Return the first true value of the predicate. Fail with the description if there is none within `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"timed out after {timeout:g} s, waiting until {description}"
        await asyncio.sleep(interval)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel a task again and again until it has ended. On Python 3.11, redis-py may lose a cancellation."""
    await wait_until(lambda: not task.cancel(), "the task has ended")
