"""This replica's copy of a list in Redis, such as the tokens that were created at runtime."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from controller.store.entries import EntryList, ListName
from controller.store.registry import Registry

logger = logging.getLogger("controller")

INTERVAL: Final = 0.5  # seconds between two updates of the copy of each replica
_UNKNOWN: Final = EntryList(0, "", {})


class SharedList:
    """A list in Redis, of which each replica keeps a copy. A replica restores the list if Redis loses it."""

    def __init__(self, registry: Registry, name: ListName) -> None:
        self._registry = registry
        self._name = name
        self._known = _UNKNOWN
        self._lock = asyncio.Lock()  # otherwise an update that has read an older list could replace a newer copy

    @property
    def entries(self) -> Mapping[str, str]:
        """The record of each entry, by its name, as of the last update."""
        return self._known.entries

    async def update(self) -> bool:
        """Get the list from Redis if it has changed, and restore it there if Redis lost it.

        Return True if the copy has changed. Raises StoreError.
        """
        async with self._lock:
            return await self._update()

    async def _update(self) -> bool:
        known = self._known
        found = await self._registry.list_entries(self._name, known.version, known.change)
        if found is not None and found.version < known.version:
            logger.warning("Redis lost changes of its list %s: restoring %d entries.", self._name, len(known.entries))
            await self._registry.restore_entries(self._name, known)
            found = await self._registry.list_entries(self._name, known.version, known.change)
        if found is None:
            return False
        self._known = found
        return True
