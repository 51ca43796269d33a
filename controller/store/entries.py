"""Lists in Redis of which each replica keeps a copy: tokens, engines and the routes of models."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from controller.store.runner import ScriptRunner


class ListName(StrEnum):
    """The names of the lists."""

    TOKENS = "tokens"
    ENGINES = "engines"
    ROUTES = "routes"


class EntryList(NamedTuple):
    """A list as Redis has it.

    version: grows with each change.
    change: identifies the latest change. After a failover, two changes may have the same version.
    entries: the record of each entry, by its name.
    """

    version: int
    change: str
    entries: Mapping[str, str]


class EntryStore(ScriptRunner):
    """The lists of one namespace."""

    async def set_entry(
        self, list_name: ListName, name: str, record: str, *, limit: int, replaces: bool = True
    ) -> bool | None:
        """Write an entry, or remove it with the record "".

        Returns False if nothing was done: there is none to remove, or there is one and `replaces` is False. Returns
        None if the list has `limit` entries already.
        """
        result = await self._run("set_entry", *self._repeatable(), list_name, limit, int(replaces), name, record)
        return None if result == -1 else bool(result)

    async def list_entries(self, list_name: ListName, version: int = 0, change: str = "") -> EntryList | None:
        """Return a list. None if it still has this version and change."""
        found_version, found_change, *listed = await self._run("list_entries", list_name, version, change)
        if not listed:
            return None
        return EntryList(found_version, found_change, dict(zip(listed[0][::2], listed[0][1::2], strict=True)))

    async def restore_entries(self, list_name: ListName, entries: EntryList) -> bool:
        """Restore a list that Redis lost. Return False if the one there is as new."""
        items = [argument for item in entries.entries.items() for argument in item]
        return bool(await self._run("restore_entries", list_name, entries.version, entries.change, *items))
