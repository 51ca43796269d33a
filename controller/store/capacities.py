"""The capacities in Redis that operators have set for workers and models."""

from collections.abc import Sequence
from typing import Final

from controller.domain.capacity import MAX_CAPACITIES, CapacityList, CapacityTarget
from controller.domain.errors import InvalidInput
from controller.domain.worker import Worker
from controller.store.runner import ScriptRunner

_PAGE: Final = 100


class CapacityStore(ScriptRunner):
    """The capacities of one namespace."""

    async def set_capacity(self, target: CapacityTarget, capacity: int | None) -> int | None:
        """Set a capacity, or remove it with None. Return what was set before.

        Registered workers keep their capacities until apply_capacities() is called.

        Raises InvalidInput if capacities are set for too many targets.
        """
        value = "" if capacity is None else capacity
        before = await self._run("set_capacity", *self._repeatable(), MAX_CAPACITIES, target.key, value)
        if before == -1:
            raise InvalidInput(
                "worker_name" if target.worker_name else "model",
                f"{MAX_CAPACITIES} capacities are set already, which is the limit. Remove one, and try again",
            )
        return int(before) if before else None

    async def apply_capacities(self, workers: Sequence[Worker]) -> int:
        """Decide the capacities of registered workers again. Return the number of these workers.

        A worker that has expired or registered again since it was listed stays unchanged.
        """
        applied = 0
        for first in range(0, len(workers), _PAGE):
            applied += sum(
                await self._run_each(
                    "apply_capacities",
                    lambda: (*self._repeatable(), self._decays),
                    workers[first : first + _PAGE],
                    lambda worker: (
                        worker.name,
                        worker.registration,
                        self._default_capacity(worker.status.model_names),
                    ),
                )
            )
        return applied

    async def list_capacities(self) -> CapacityList:
        """Return all capacities that were set. A capacity that is set during the listing may be missing."""
        found: dict[CapacityTarget, int] = {}
        cursor, version, pairs = await self._run("list_capacities", "0", _PAGE)
        while True:
            found.update(
                (CapacityTarget.from_key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True)
            )
            if cursor == "0":
                return CapacityList(version, found)
            cursor, _, pairs = await self._run("list_capacities", cursor, _PAGE)

    async def restore_capacities(self, capacities: CapacityList) -> None:
        """Restore capacities that Redis lost. They replace those in Redis, unless these have a later version."""
        items = [(target.key, capacity) for target, capacity in capacities.by_target.items()]
        for first in range(0, max(1, len(items)), _PAGE):
            page = (argument for item in items[first : first + _PAGE] for argument in item)
            is_first, is_last = first == 0, first + _PAGE >= len(items)
            if not await self._run("restore_capacities", capacities.version, int(is_first), int(is_last), *page):
                return
