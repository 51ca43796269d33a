"""The operations of the registry for one item each. Concurrent ones go to the store together, in few calls."""

from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from controller.coalescer import Coalescer
from controller.domain.errors import StoreError, StoreUnavailable
from controller.domain.worker import Worker
from controller.guard import StoreGuard
from controller.metrics import Metrics
from controller.store.registry import DrainCall, FailureCall, RegisterCall, Registry, RemoveCall, Report

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_ALL = 1_000_000  # where one answer is for all, however many wait for it


class Batches:
    """One replica's calls to the registry that may come in large numbers.

    Every method returns a future. It raises StoreError as the registry does. An operation whose future is cancelled may
    still take place. release_later is called with leases that could not be released.
    """

    def __init__(
        self,
        guard: StoreGuard,
        registry: Registry,
        metrics: Metrics,
        release_later: Callable[[Sequence[str]], None],
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._metrics = metrics
        self._release_later = release_later
        self._registrations = self._coalesce(registry.register_many)
        self._heartbeats = Coalescer(self._heartbeat_all)
        self._poll_answers = self._coalesce(registry.take_poll_answers)
        self._releases = Coalescer(self._release_all)
        self._renewals = self._coalesce(registry.renew_many)
        self._failures = self._coalesce(registry.report_failure_many)
        self._drains = self._coalesce(registry.drain_many)
        # Removals go to the store even when it is known not to serve: a full one needs them most.
        self._removals: Coalescer[RemoveCall, bool] = Coalescer(lambda calls: guard.insist(registry.remove_many, calls))
        self._listings = Coalescer(self._list_all, _ALL)
        self._checks = Coalescer(self._check_all, _ALL)

    def register(self, call: RegisterCall) -> "Future[bool | None]":
        """As Registry.register()."""
        return self._registrations.submit(call)

    def heartbeat(self, report: Report) -> "Future[bool]":
        """Take a heartbeat. Return whether the worker is registered."""
        return self._heartbeats.submit(report)

    def take_poll_answer(self, report: Report) -> "Future[bool]":
        """Take the answer to a poll. Return whether the worker is registered."""
        return self._poll_answers.submit(report)

    def release(self, lease: str) -> "Future[bool]":
        """End a lease. Return whether it was active."""
        return self._releases.submit(lease)

    def renew(self, lease: str) -> "Future[bool]":
        """As Registry.renew()."""
        return self._renewals.submit(lease)

    def report_failure(self, call: FailureCall) -> "Future[bool | None]":
        """As Registry.report_failure()."""
        return self._failures.submit(call)

    def drain(self, call: DrainCall) -> "Future[bool]":
        """As Registry.drain()."""
        return self._drains.submit(call)

    def remove(self, call: RemoveCall) -> "Future[bool]":
        """As Registry.remove()."""
        return self._removals.submit(call)

    def list_workers(self) -> "Future[list[Worker]]":
        """Return all live workers, in order of name."""
        return self._listings.submit(None)

    def check(self) -> "Future[None]":
        """As Registry.check()."""
        return self._checks.submit(None)

    def _coalesce(self, call: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> Coalescer[Item, Answer]:
        return Coalescer(lambda items: self._guard.ask(call, items))

    async def _heartbeat_all(self, reports: Sequence[Report]) -> list[bool]:
        try:
            known = await self._guard.ask(self._registry.heartbeat, reports)
        except StoreError:
            self._metrics.heartbeats_store_unavailable.inc(len(reports))
            raise
        self._metrics.heartbeats_known.inc(sum(known))
        self._metrics.heartbeats_unknown.inc(len(known) - sum(known))
        return known

    async def _release_all(self, leases: Sequence[str]) -> list[bool]:
        try:
            return await self._guard.ask(self._registry.release, leases)
        except StoreUnavailable:
            self._release_later(leases)
            raise

    async def _list_all(self, askers: Sequence[None]) -> list[list[Worker]]:
        workers = (await self._guard.ask(self._registry.list_workers)).workers
        return [workers] * len(askers)

    async def _check_all(self, askers: Sequence[None]) -> list[None]:
        await self._guard.ask(self._registry.check)
        return [None] * len(askers)
