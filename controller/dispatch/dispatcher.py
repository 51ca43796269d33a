"""Chooses workers for requests: coalesces calls to Redis, falls back to degraded mode, and counts outcomes."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from controller.availability.batches import Batches
from controller.availability.coalescer import AGAIN, Again, Coalescer
from controller.availability.degraded import DegradedMode
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.domain.affinity import Affinity
from controller.domain.engine import RESERVED, Protocol, indexed_name, model_of, protocol_of
from controller.domain.errors import StoreError, StoreUnavailable, TooManyLeases
from controller.domain.worker import MAX_MODEL_NAME_LENGTH
from controller.metrics import Metrics
from controller.settings import Settings
from controller.store.registry import REFUSED, TOKEN_REFUSED, Choice, FailureCall, Find, Registry, Request

_REFUSALS: Final = frozenset({REFUSED, TOKEN_REFUSED})


class Assignment(NamedTuple):
    """The address of a request's worker, and the request's lease.

    Both are "" if the model has no live worker. Only the lease is "" if the request has no lease.
    """

    address: str
    lease: str


class Dispatcher:
    """The operations of clients, on one replica.

    While Redis is unavailable, workers and models come from the snapshot. Without a fresh snapshot, these methods raise
    StoreUnavailable. release(), renew() and report_failure() raise it throughout an outage. StoreRejection means a bug
    in the controller or foreign data in Redis.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        batches: Batches,
        snapshots: SnapshotManager,
        degraded: DegradedMode,
        metrics: Metrics,
    ) -> None:
        self._method = settings.dispatch_method
        self._lease_time = settings.lease_time
        self._max_leases = settings.max_leases
        self._max_leases_per_token = settings.max_leases_per_token
        self._registry = registry
        self._batches = batches
        self._breaker = snapshots.breaker
        self._snapshots = snapshots
        self._degraded = degraded
        self._metrics = metrics
        self._dispatches: Coalescer[Request, MaybeStale[Choice]] = Coalescer(self._dispatch_all)
        self._finds: Coalescer[Find, MaybeStale[str]] = Coalescer(self._find_all)
        self._model_lists: Coalescer[bool | None, MaybeStale[list[str]]] = Coalescer(self._list_models_all)

    async def dispatch(self, model: str, protocol: Protocol = Protocol.FASTCHAT) -> MaybeStale[str]:
        """Choose a worker for one request and book it. Return its address, or "" if the model has no live worker.

        protocol: as in dispatch_with_lease().
        """
        if _is_impossible(model):
            self._metrics.dispatches.count("no_worker", model)
            return MaybeStale("")
        began = time.perf_counter()
        request = Request(indexed_name(model, protocol))
        choice, snapshot_age = await self._dispatches.submit(request)
        if not choice.worker and snapshot_age is None:
            choice, snapshot_age = await self._verify(request)
        self._metrics.dispatch_time.observe(time.perf_counter() - began)
        return MaybeStale(choice.worker, snapshot_age)

    async def dispatch_with_lease(
        self,
        model: str,
        lease_time: float | None = None,
        token: str = "",
        protocol: Protocol = Protocol.FASTCHAT,
        affinity: Affinity | None = None,
        on_unused: Callable[[Assignment], object] | None = None,
    ) -> MaybeStale[Assignment]:
        """Choose a worker for one request and book it until the lease is released or expires.

        lease_time: seconds until the lease expires. The default is the setting lease_time.
        token: name of the token of the request. "" if it needed none.
        protocol: that of the request. Only workers that understand it are chosen.
        affinity: the request goes to a worker that got an earlier one with the same keys, unless it is gone or
            overloaded. Leave it out when a request is sent to another worker after a failure. The lottery ignores it.
        on_unused: called with the worker and the lease if the caller is cancelled before it gets them.

        While Redis is unavailable there are no leases: the lease is "" and the request counts as one without a lease.
        There is no affinity either.

        Raises TooManyLeases at a limit: the setting max_leases for all leases, or max_leases_per_token for the leases
        of `token`.
        """
        lease_ms = max(1, round(1000 * (self._lease_time if lease_time is None else lease_time)))
        if _is_impossible(model):
            self._metrics.dispatches.count("no_worker", model)
            return MaybeStale(Assignment("", ""))
        began = time.perf_counter()
        counted = token if self._max_leases_per_token else ""
        request = Request(indexed_name(model, protocol), lease_ms, counted, affinity.keys if affinity else ())
        booking = self._dispatches.submit(request)
        choice, snapshot_age = await (_kept(booking, on_unused) if on_unused else booking)
        if not choice.worker and not choice.lease and snapshot_age is None:
            choice, snapshot_age = await self._verify(request, on_unused)
        self._metrics.dispatch_time.observe(time.perf_counter() - began)
        if choice.lease == TOKEN_REFUSED:
            raise TooManyLeases(
                f"The token {token} has {self._max_leases_per_token} active leases, which is the limit "
                "--max-leases-per-token of this cluster. No lease was granted. Release leases when their requests end, "
                "or send the request without `lease`."
            )
        if choice.lease == REFUSED:
            raise TooManyLeases(
                f"{self._max_leases} leases are active, which is the limit --max-leases of this cluster. No lease was "
                "granted. Release leases when their requests end, or send the request without `lease`."
            )
        return MaybeStale(Assignment(choice.worker, choice.lease), snapshot_age)

    async def find_worker(
        self, model: str, excluded: frozenset[str] = frozenset(), protocol: Protocol = Protocol.FASTCHAT
    ) -> MaybeStale[str]:
        """Find a live worker of a model at random, and book nothing. Return "" if the model has no live worker.

        Used for requests that put no load on a worker, and to check whether a model has a live worker.

        excluded: names of workers that must not be returned.
        protocol: as in dispatch_with_lease().
        """
        if _is_impossible(model):
            return MaybeStale("")
        find = Find(indexed_name(model, protocol), excluded)
        found = await self._finds.submit(find)
        if found.value or excluded or found.snapshot_age is not None:
            return found
        with contextlib.suppress(StoreError):
            if await self._snapshots.verify_missing([find.model]):
                return await self._finds.submit(find)
        return found

    async def release(self, lease: str) -> bool:
        """Release a lease: its request has ended. Return True if the lease was active."""
        return await self._batches.release(lease)

    def start_release(self, lease: str) -> "asyncio.Future[bool]":
        """Start release(). Return its future result, which raises StoreError."""
        return self._batches.release(lease)

    async def renew(self, lease: str) -> bool:
        """Renew a lease for its full time from now. Return True if the lease is active and its worker is alive."""
        return await self._batches.renew(lease)

    async def report_failure(self, name: str) -> bool:
        """Deprioritise a worker until its next heartbeat. Return True if the worker is alive.

        While Redis is unavailable, this replica deprioritises it until its next snapshot, and raises StoreUnavailable.
        """
        try:
            exists = bool(await self._batches.report_failure(FailureCall(name)))
        except StoreUnavailable:
            self._snapshots.fail(name)
            raise
        if exists:
            self._snapshots.request()
        return exists

    async def clear_failure(self, name: str) -> None:
        """Clear the failure of a worker that has served a request, without a change of its heartbeat."""
        try:
            await self._batches.clear_failure(name)
        except StoreUnavailable:
            self._snapshots.clear_failure(name)
            raise
        self._snapshots.request()

    async def list_models(
        self, multimodal: bool | None = None, protocol: Protocol = Protocol.FASTCHAT
    ) -> MaybeStale[list[str]]:
        """Return the models of live workers, sorted: all, those of multimodal workers (True) or of others (False).

        protocol: only workers that understand it count.
        """
        models, snapshot_age = await self._model_lists.submit(multimodal)
        return MaybeStale([model_of(model) for model in models if protocol_of(model) is protocol], snapshot_age)

    async def _dispatch_all(self, requests: Sequence[Request]) -> Sequence[MaybeStale[Choice] | Again]:
        try:
            choices = await self._breaker.call(self._registry.dispatch_some, self._method, requests)
        except StoreError as error:
            return self._dispatch_degraded([request.model for request in requests], error)
        self._metrics.dispatch_batches.inc()
        self._metrics.batch_size.observe(len(choices))
        count_chosen = self._metrics.dispatches.chosen
        for request, choice in zip(requests, choices, strict=True):  # _verify() counts those without a worker
            if choice is None:
                continue
            if choice.worker:
                count_chosen(model_of(request.model))
                if choice.affinity:
                    self._metrics.affinity.count(choice.affinity, model_of(request.model))
            elif choice.lease in _REFUSALS:
                self._metrics.dispatches.count("refused", model_of(request.model))
        return [AGAIN if choice is None else MaybeStale(choice) for choice in choices]

    async def _verify(
        self, request: Request, on_unused: Callable[[Assignment], object] | None = None
    ) -> MaybeStale[Choice]:
        """Retry a request that found no worker, in case Redis had lost its registry. Other requests do not wait."""
        answer = MaybeStale(Choice())
        try:
            if await self._snapshots.verify_missing([request.model]):
                booking = self._dispatches.submit(request)
                answer = await (_kept(booking, on_unused) if on_unused else booking)
        except StoreError as error:
            with contextlib.suppress(StoreError):
                [answer] = self._dispatch_degraded([request.model], error)
        if not answer.value.worker and not answer.value.lease and answer.snapshot_age is None:
            self._metrics.dispatches.count("no_worker", model_of(request.model))
        return answer

    def _dispatch_degraded(self, models: Sequence[str], error: StoreError) -> list[MaybeStale[Choice]]:
        names = [model_of(model) for model in models]
        try:
            addresses, age = self._degraded.dispatch(models, error)
        except StoreError:
            for name in names:
                self._metrics.dispatches.count("store_unavailable", name)
            raise
        self._metrics.dispatches.know([name for name, address in zip(names, addresses, strict=True) if address])
        for name, address in zip(names, addresses, strict=True):
            self._metrics.dispatches.count("degraded" if address else "no_worker", name)
        return [MaybeStale(Choice(address), age) for address in addresses]

    async def _find_all(self, finds: Sequence[Find]) -> list[MaybeStale[str]]:
        try:
            found = await self._breaker.call(self._registry.find_workers, finds)
        except StoreError as error:
            snapshot, age = self._snapshots.get(error)
            return [MaybeStale(snapshot.find(find.model, find.excluded), age) for find in finds]
        return [MaybeStale(worker) for worker in found]

    async def _list_models_all(self, kinds: Sequence[bool | None]) -> list[MaybeStale[list[str]]]:
        lists = {kind: await self._list_models(kind) for kind in set(kinds)}
        return [lists[kind] for kind in kinds]

    async def _list_models(self, kind: bool | None) -> MaybeStale[list[str]]:
        try:
            models = await self._breaker.call(self._registry.list_models, kind)
            if not models and await self._snapshots.verify_missing(self._snapshots.models(kind)):
                models = await self._breaker.call(self._registry.list_models, kind)
            return MaybeStale(models)
        except StoreError as error:
            snapshot, age = self._snapshots.get(error)
            return MaybeStale(snapshot.list_models(kind), age)


async def _kept(
    booking: "asyncio.Future[MaybeStale[Choice]]", on_unused: Callable[[Assignment], object]
) -> MaybeStale[Choice]:
    """Return a booking when it is there. If the caller is cancelled, the booking continues, and on_unused gets it."""
    try:
        return await asyncio.shield(booking)
    except asyncio.CancelledError:
        booking.add_done_callback(partial(_pass_unused, on_unused))
        raise


def _pass_unused(on_unused: Callable[[Assignment], object], booking: "asyncio.Future[MaybeStale[Choice]]") -> None:
    if not booking.cancelled() and booking.exception() is None:
        choice = booking.result().value
        if choice.worker:
            on_unused(Assignment(choice.worker, choice.lease))


def _is_impossible(model: str) -> bool:
    """Return True if no worker can register a model: its name is too long, or begins with RESERVED.

    Such a name is never sent to Redis. It may be as long as a whole request body, or that of an index of engines.
    """
    return len(model) > MAX_MODEL_NAME_LENGTH or model[:1] == RESERVED
