"""Turns many concurrent calls into few: what arrives while a call is under way waits, and goes together in the next.

There is no timer, so a call that finds nothing under way starts at once. The busier the store, the larger the
batches.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, Generic, Literal, TypeAlias, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Again(Enum):
    AGAIN = "again"


AGAIN: Final = _Again.AGAIN  # as the answer for an item: the call did not get to it, so it goes into a later one
Again: TypeAlias = Literal[_Again.AGAIN]


class Coalescer(Generic[Item, Answer]):
    """Makes one call for many items.

    call takes the items in the order of their arrival, at most `limit` of them, and returns as many answers in the
    same order. Whatever it raises is raised to all who wait for that call. Items with the answer AGAIN go behind the
    items that arrived meanwhile.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Again]]], limit: int = 256) -> None:
        self._call = call
        self._limit = limit
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> "asyncio.Future[Answer]":
        """The future answer for `item`. An item whose future is cancelled before its call starts is left out."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
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
            for _, future in self._waiting:  # only if this task was cancelled
                future.cancel()
            self._waiting.clear()

    async def _answer(self, batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._call([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - it is not swallowed: each caller gets it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for entry, answer in zip(batch, answers, strict=True):
                if answer is AGAIN:
                    self._waiting.append(entry)
                elif not entry[1].done():
                    entry[1].set_result(answer)
