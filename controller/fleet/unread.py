"""The items of a stream that one of its clients has not read yet."""

import asyncio
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Unread(Generic[Item]):
    """A bounded queue for one client. If the client reads too slowly, everything in it is dropped.

    is_behind: items were dropped, or the client lacks older ones. It needs them from elsewhere. The client resets it.
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
