"""Registry operations for single items. Concurrent operations of the same kind share a few calls to Redis."""

from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from controller.availability.circuit_breaker import CircuitBreaker
from controller.availability.coalescer import Coalescer
from controller.availability.reconciler import Reconciler
from controller.domain.errors import ReplicaBusy, StoreError, StoreUnavailable
from controller.domain.worker import Worker
from controller.metrics import Metrics
from controller.store.registry import DrainCall, FailureCall, Refusal, RegisterCall, Registry, RemoveCall, Report

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_ALL: Final = 1_000_000  # batch size of operations whose one result goes to all callers


class Batches:
    """One replica's frequent calls to the registry.

    Every method returns a future, which raises StoreError as the registry does. Cancelling the future does not always
    prevent the operation. The reconciler gets the leases that cannot be released during an outage, or because this
    replica is busy.
    """

    def __init__(self, breaker: CircuitBreaker, registry: Registry, metrics: Metrics, reconciler: Reconciler) -> None:
        self._breaker = breaker
        self._registry = registry
        self._metrics = metrics
        self._reconciler = reconciler
        self._registrations = self._coalesce(registry.register_many)
        self._heartbeats = Coalescer(self._heartbeat_all)
        self._poll_answers = self._coalesce(registry.take_poll_answers)
        self._engine_answers = self._coalesce(registry.take_engine_answers)
        self._releases = Coalescer(self._release_all)
        self._renewals = self._coalesce(registry.renew_many)
        self._failures = self._coalesce(registry.report_failure_many)
        self._recoveries = self._coalesce(registry.clear_failures)
        self._drains = self._coalesce(registry.drain_many)
        # A full Redis rejects writes and so opens the circuit breaker, but it needs the removals most.
        self._removals: Coalescer[RemoveCall, bool] = Coalescer(
            lambda calls: breaker.force_call(registry.remove_many, calls)
        )
        self._listings = Coalescer(self._list_all, _ALL)
        self._checks = Coalescer(self._check_all, _ALL)

    def register(self, call: RegisterCall) -> "Future[bool | Refusal]":
        """Register a worker, as Registry.register()."""
        return self._registrations.submit(call)

    def heartbeat(self, report: Report) -> "Future[bool]":
        """Record a heartbeat. Return True if the worker is registered."""
        return self._heartbeats.submit(report)

    def take_poll_answer(self, report: Report) -> "Future[bool]":
        """Record an answer to a status poll. Return True if the worker is registered."""
        return self._poll_answers.submit(report)

    def take_engine_answer(self, report: Report) -> "Future[bool]":
        """Record an answer of an engine that is ready. Return True if it is registered."""
        return self._engine_answers.submit(report)

    def release(self, lease: str) -> "Future[bool]":
        """Release a lease. Return True if it was active."""
        return self._releases.submit(lease)

    def renew(self, lease: str) -> "Future[bool]":
        """Renew a lease, as Registry.renew()."""
        return self._renewals.submit(lease)

    def report_failure(self, call: FailureCall) -> "Future[bool | None]":
        """Deprioritise a worker, as Registry.report_failure()."""
        return self._failures.submit(call)

    def clear_failure(self, name: str) -> "Future[bool]":
        """Clear the failure of a worker, as Registry.clear_failures(). Return True if the worker is alive."""
        return self._recoveries.submit(name)

    def drain(self, call: DrainCall) -> "Future[bool]":
        """Drain a worker or resume it, as Registry.drain()."""
        return self._drains.submit(call)

    def remove(self, call: RemoveCall) -> "Future[bool]":
        """Remove a worker, as Registry.remove()."""
        return self._removals.submit(call)

    def list_workers(self) -> "Future[list[Worker]]":
        """Return all live workers, sorted by name."""
        return self._listings.submit(None)

    def check(self) -> "Future[None]":
        """Check Redis, as Registry.check()."""
        return self._checks.submit(None)

    def _coalesce(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> Coalescer[Item, Answer]:
        return Coalescer(lambda items: self._breaker.call(call, items))

    async def _heartbeat_all(self, reports: Sequence[Report]) -> list[bool]:
        try:
            known = await self._breaker.call(self._registry.heartbeat, reports)
        except StoreError:
            self._metrics.heartbeats_store_unavailable.inc(len(reports))
            raise
        self._metrics.heartbeats_known.inc(sum(known))
        self._metrics.heartbeats_unknown.inc(len(known) - sum(known))
        return known

    async def _release_all(self, leases: Sequence[str]) -> list[bool]:
        try:
            return await self._breaker.call(self._registry.release, leases)
        except (StoreUnavailable, ReplicaBusy):
            self._reconciler.add_leases(leases)
            raise

    async def _list_all(self, callers: Sequence[None]) -> list[list[Worker]]:
        workers = (await self._breaker.call(self._registry.list_workers)).workers
        return [workers] * len(callers)

    async def _check_all(self, callers: Sequence[None]) -> list[None]:
        await self._breaker.call(self._registry.check)
        return [None] * len(callers)
