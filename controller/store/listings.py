"""Listings of the workers and of their models in Redis, read in pages."""

import json
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from controller.domain.clock import ClockReading
from controller.domain.engine import Engine, model_of
from controller.domain.errors import InvalidInput, StoreRejection, StoreUnavailable
from controller.domain.worker import Worker, WorkerStatus
from controller.store.runner import ScriptRunner

PAGE: Final = 100
_PAGE_LENGTH: Final = 500_000  # characters of the names of models in a page
_MAX_LISTINGS: Final = 3  # attempts, if Redis loses data during a listing


class WorkerList(NamedTuple):
    """All live workers, sorted by name.

    sequence: counts registrations, dispatches, drains and removals.
    epoch: random id of the data in Redis.
    clock: a reading of Redis's clock.
    capacities_version: as in CapacityList.
    """

    workers: list[Worker]
    sequence: int
    epoch: str
    clock: ClockReading
    capacities_version: int


class ListingStore(ScriptRunner):
    """The listings of one namespace."""

    _page = PAGE  # workers in the next page of a listing

    async def list_workers(self) -> WorkerList:
        """Return all live workers. A worker that registers or expires during the listing may be missing."""
        for _ in range(_MAX_LISTINGS):
            found: dict[str, Worker] = {}
            sent_at = time.monotonic()
            reply = await self._run("list_workers", "0", self._page, self._decays)
            cursor, sequence, epoch, time_ms, workers, capacities_version = reply
            clock = ClockReading.between(sent_at, time_ms / 1000, time.monotonic())
            first = sequence, epoch
            found.update((fields[0], _worker(fields)) for fields in workers)
            self._size_page(workers)
            while cursor != "0" and epoch == first[1] and sequence >= first[0]:
                reply = await self._run("list_workers", cursor, self._page, self._decays)
                cursor, sequence, epoch, _, workers, _ = reply
                found.update((fields[0], _worker(fields)) for fields in workers)
                self._size_page(workers)
            if epoch == first[1] and sequence >= first[0]:
                return WorkerList([found[name] for name in sorted(found)], *first, clock, capacities_version)
        raise StoreUnavailable(
            f"Redis lost data during each of {_MAX_LISTINGS} attempts to list the workers. Check its persistence and "
            "its log."
        )

    def _size_page(self, workers: Sequence[Sequence[Any]]) -> None:
        """Let the next pages have fewer workers if the names of their models are long."""
        length = sum(len(fields[1]) for fields in workers)
        self._page = max(1, min(PAGE, _PAGE_LENGTH * len(workers) // length)) if length else PAGE

    async def list_models(self, multimodal: bool | None = None) -> list[str]:
        """Return the models of live workers, sorted: all, those of multimodal workers (True) or of others (False).

        The names are those of the indexes (controller/domain/engine.py).
        """
        return await (self._list_all_models() if multimodal is None else self.list_models_by_kind(multimodal))

    async def _list_all_models(self) -> list[str]:
        models: set[str] = set()
        cursor = "0"
        unfinished: list[str] = []
        while cursor or unfinished:
            cursor, found, unfinished = await self._run("list_models", cursor, PAGE, *unfinished)
            models.update(found)
        return sorted(models)

    async def list_models_by_kind(self, multimodal: bool) -> list[str]:
        """Return the models of all multimodal live workers, or of all others, sorted."""
        lists: set[str] = set()
        cursor = "0"
        while True:
            cursor, found = await self._run("list_models_by_kind", cursor, self._page, int(multimodal))
            lists.update(found)
            if cursor == "0":
                return sorted({model for models in lists for model in json.loads(models)})


def _worker(fields: Sequence[Any]) -> Worker:
    name, models, speed, queue_length, multimodal, check_heart_beat, registration, age_ms, expires_in_ms = fields[:9]
    leased, capacity, draining, failing, polled, reported, booked, capacity_source, reported_capacity = fields[9:18]
    try:
        engine = Engine.decode(fields[19]) if fields[19] else None
        names = json.loads(models)
        status = WorkerStatus(
            tuple(map(model_of, names) if engine else names),
            _number(speed),
            int(queue_length),
            int(capacity) if capacity else None,
        )
    except (ValueError, TypeError, InvalidInput) as error:
        raise StoreRejection(
            f"Redis holds a worker {name!r} that the controller cannot have written: {error}. Another program writes "
            "to the keys of this controller. Remove the worker, or use another --namespace."
        ) from error
    return Worker(
        name=name,
        status=status,
        check_heart_beat=check_heart_beat == "1",
        multimodal=multimodal == "1",
        registration=int(registration),
        heartbeat_age=age_ms / 1000,
        expires_in=None if expires_in_ms < 0 else expires_in_ms / 1000,
        leased=leased,
        draining=draining == "1",
        failing=failing,
        polled=polled == "1",
        reported=reported,
        booked=booked,
        capacity_source=_capacity_source(capacity_source, engine) if capacity else "",
        reported_capacity=int(reported_capacity) if reported_capacity else None,
        registered_by=fields[18],
        engine=engine,
        own=fields[20],
        own_work=float(fields[21]) / 1000,
    )


def _capacity_source(stored: str, engine: Engine | None) -> str:
    return "learned" if stored == "reported" and engine and engine.capacity_learned else stored


def _number(text: str) -> float:
    """Return a number as the worker wrote it: "1" becomes 1, not 1.0."""
    return float(text) if "." in text or "e" in text else int(text)
