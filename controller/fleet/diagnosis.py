"""Collects what `controller doctor` needs to know of a replica and its Redis."""

import time
from typing import Final

from controller import __version__
from controller.availability.snapshots import SnapshotManager
from controller.domain.diagnosis import Diagnosis, ReplicaDiagnosis, StoreDiagnosis
from controller.domain.errors import StoreError
from controller.fleet import process
from controller.fleet.replicas import Replicas
from controller.settings import Settings
from controller.store.registry import Registry

_KEPT_FOR: Final = 1.0  # seconds for which several callers get the same facts


class Diagnostician:
    """Diagnoses one replica, at most once a second. All callers within that second get the same facts."""

    def __init__(self, settings: Settings, registry: Registry, snapshots: SnapshotManager, replicas: Replicas) -> None:
        self._timeout = settings.redis_timeout
        self._kind = settings.store_url().kind
        self._registry = registry
        self._snapshots = snapshots
        self._replicas = replicas
        self._last: StoreDiagnosis | None = None
        self._read_at = 0.0

    async def diagnose(self) -> Diagnosis:
        """Return the facts. Without Redis, the facts about Redis say why it is unavailable."""
        if self._last is None or time.monotonic() - self._read_at > _KEPT_FOR:
            self._last = await self._diagnose_store()
            self._read_at = time.monotonic()
        jump = self._snapshots.recent_clock_jump
        replica = ReplicaDiagnosis(
            id=self._replicas.id,
            name=self._replicas.name,
            version=__version__,
            snapshot_age=round(self._snapshots.age, 3),
            open_files=process.open_files(),
            open_files_limit=process.open_files_limit(),
            clock_jump=None if jump is None else jump[0],
        )
        return Diagnosis(replica=replica, store=self._last)

    async def _diagnose_store(self) -> StoreDiagnosis:
        """Ask Redis itself, and not through the circuit breaker: a Redis that cannot be used may still answer."""
        reason = self._snapshots.breaker.reason
        try:
            facts, unknown = await self._registry.diagnose()
        except StoreError as error:
            return StoreDiagnosis(kind=self._kind, timeout=self._timeout, unavailable=str(reason or error))
        return StoreDiagnosis(
            kind=self._kind,
            timeout=self._timeout,
            unavailable=None if reason is None else str(reason),
            facts=facts,
            unknown=unknown,
        )
