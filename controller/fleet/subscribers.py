"""The subscribers of a stream, and the items that each of them has not read yet."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from controller.domain.errors import TooManyFollowers

Item = TypeVar("Item")


class Unread(Generic[Item]):
    """A bounded queue for one subscriber. If the subscriber reads too slowly, everything in it is dropped.

    is_behind: items were dropped, or the subscriber lacks older ones. It needs them from elsewhere, and resets this.
    """

    def __init__(self, limit: int, *, is_behind: bool = False) -> None:
        self._items: asyncio.Queue[Item | None] = asyncio.Queue(limit)
        self.is_behind = is_behind

    def put(self, item: Item | None) -> None:
        """Add an item. None ends the stream."""
        if self._items.full():
            self.is_behind = True
            self.drop()
        self._items.put_nowait(item)

    def drop(self) -> None:
        """Drop all items."""
        while not self._items.empty():
            self._items.get_nowait()

    async def get(self) -> Item | None:
        """Wait for the next item and return it. None if the stream has ended."""
        return await self._items.get()


class Subscribers(Generic[Item]):
    """The subscribers of a stream, and a queue for each.

    max_unread: number of items that wait for a subscriber that reads slowly.
    """

    def __init__(self, max_unread: int) -> None:
        self._max_unread = max_unread
        self._queues: set[Unread[Item]] = set()
        self.stopped = False

    def __len__(self) -> int:
        return len(self._queues)

    @contextmanager
    def join(self, limit: int, refusal: str, *, is_behind: bool = False) -> Iterator[Unread[Item]]:
        """Add a subscriber until the block ends.

        Raises TooManyFollowers with the message `refusal` if there are `limit` subscribers.
        """
        if len(self._queues) >= limit:
            raise TooManyFollowers(refusal)
        queue = Unread[Item](self._max_unread, is_behind=is_behind)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def publish(self, item: Item) -> None:
        """Add an item to all queues."""
        for queue in self._queues:
            queue.put(item)

    def stop(self) -> None:
        """End the streams of all subscribers."""
        self.stopped = True
        for queue in self._queues:
            queue.put(None)
