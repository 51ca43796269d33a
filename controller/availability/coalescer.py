"""Combines many concurrent calls into few. Items that arrive during a call wait and share the next call.

There is no timer: a call starts at once if none is running. Batches grow as Redis gets slower.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from itertools import takewhile
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from controller.tasks import start_shared

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Again(Enum):
    AGAIN = "again"


AGAIN: Final = _Again.AGAIN  # the answer for an item that the call did not process: a later call gets it again
Again: TypeAlias = Literal[_Again.AGAIN]


class Coalescer(Generic[Item, Answer]):
    """Makes one call for many items.

    call: gets at most `limit` items in order of arrival, and returns as many answers in the same order. If it raises an
    exception, each of its items gets the exception. Items with the answer AGAIN wait behind the items that arrived
    meanwhile, or before them if no later item of the call has another answer.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Again]]], limit: int = 256) -> None:
        self._call = call
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> "asyncio.Future[Answer]":
        """Return the future answer for `item`. If it is cancelled before its call starts, the item is left out."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = start_shared(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = [entry for entry in self._waiting[: self._limit] if not entry[1].done()]
                del self._waiting[: self._limit]
                if batch:
                    await self._answer(batch)
        finally:
            self._task = None
            for _, future in self._waiting:  # items are left only if this task was cancelled
                future.cancel()
            self._waiting.clear()

    async def _answer(self, batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._call([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - each caller gets the error
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            # The call stopped before the last ones, so these are next. Others wait for something that takes longer.
            handled = len(answers) - sum(1 for _ in takewhile(lambda answer: answer is AGAIN, reversed(answers)))
            for entry, answer in zip(batch[:handled], answers, strict=False):
                if answer is AGAIN:
                    self._waiting.append(entry)
                elif not entry[1].done():
                    entry[1].set_result(answer)
            self._waiting[:0] = batch[handled:]
