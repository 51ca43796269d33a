"""Chooses workers for requests: coalesces calls to Redis, falls back to degraded mode, and counts outcomes."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.availability.batches import Batches
from controller.availability.coalescer import AGAIN, Again, Coalescer
from controller.availability.degraded import DegradedMode
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.domain.errors import StoreError, TooManyLeases
from controller.domain.worker import MAX_MODEL_NAME_LENGTH
from controller.metrics import Metrics
from controller.settings import Settings
from controller.store.registry import REFUSED, TOKEN_REFUSED, Choice, FailureCall, Find, Registry, Request

_NO_LEASE: Final = frozenset({REFUSED, TOKEN_REFUSED})


class Leased(NamedTuple):
    """A worker's address and the lease of a request. Both are "" if the model has no live worker."""

    address: str
    lease: str


class Dispatcher:
    """The operations of clients, on one replica.

    While Redis is unavailable, workers and models come from the snapshot. Without a fresh snapshot, methods raise
    StoreUnavailable. StoreRejection means a bug in the controller or foreign data in Redis.
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

    async def dispatch(self, model: str) -> MaybeStale[str]:
        """Choose a worker for one request and book it. Return its address, or "" if the model has no live worker."""
        if len(model) > MAX_MODEL_NAME_LENGTH:
            return MaybeStale(self._no_worker().worker)
        choice, snapshot_age = await self._dispatches.submit(Request(model))
        return MaybeStale(choice.worker, snapshot_age)

    async def dispatch_with_lease(
        self, model: str, lease_time: float | None = None, token: str = ""
    ) -> MaybeStale[Leased]:
        """Choose a worker for one request and book it until the lease is released or expires.

        lease_time: seconds until the lease expires. The default is the setting lease_time.
        token: name of the token of the request. "" if it needed none.

        While Redis is unavailable there are no leases: the lease is "" and the request counts as one without a lease.

        Raises TooManyLeases if as many leases are active as the settings max_leases and max_leases_per_token allow.
        """
        lease_ms = max(1, round(1000 * (self._lease_time if lease_time is None else lease_time)))
        if len(model) > MAX_MODEL_NAME_LENGTH:
            return MaybeStale(Leased(*self._no_worker()))
        counted = token if self._max_leases_per_token else ""
        choice, snapshot_age = await self._dispatches.submit(Request(model, lease_ms, counted))
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
        return MaybeStale(Leased(*choice), snapshot_age)

    async def find_worker(self, model: str, excluded: frozenset[str] = frozenset()) -> MaybeStale[str]:
        """Find a live worker of a model at random, and book nothing. Return "" if the model has no live worker.

        It is for requests that are no load, and for the question whether a model has a live worker.

        excluded: names of workers that are not to be found.
        """
        if len(model) > MAX_MODEL_NAME_LENGTH:
            return MaybeStale("")
        return await self._finds.submit(Find(model, excluded))

    async def release(self, lease: str) -> bool:
        """Release a lease: its request has ended. Return True if the lease was active."""
        return await self._batches.release(lease)

    async def renew(self, lease: str) -> bool:
        """Renew a lease for its full time from now. Return True if the lease is active and its worker is alive."""
        return await self._batches.renew(lease)

    async def report_failure(self, name: str) -> bool:
        """Deprioritise a worker until its next heartbeat. Return True if the worker is alive."""
        exists = bool(await self._batches.report_failure(FailureCall(name)))
        if exists:
            self._snapshots.request()
        return exists

    async def list_models(self, multimodal: bool | None = None) -> MaybeStale[list[str]]:
        """Return the models of live workers, sorted: all, those of multimodal workers (True) or of others (False)."""
        return await self._model_lists.submit(multimodal)

    def _no_worker(self) -> Choice:
        """Return the result for a model name that is too long to be registered.

        Redis is not called, because the name may be as long as a whole request body.
        """
        self._metrics.dispatches_no_worker.inc()
        return Choice()

    async def _dispatch_all(self, requests: Sequence[Request]) -> Sequence[MaybeStale[Choice] | Again]:
        try:
            choices = await self._breaker.call(self._registry.dispatch_some, self._method, requests)
        except StoreError as error:
            return self._dispatch_degraded([request.model for request in requests], error)
        self._metrics.dispatch_batches.inc()
        answers: list[MaybeStale[Choice] | Again] = [
            AGAIN if choice is None else MaybeStale(choice) for choice in choices
        ]
        missing = [i for i, choice in enumerate(choices) if choice is not None and not (choice.worker or choice.lease)]
        if missing:
            for i, answer in zip(missing, await self._verify([requests[i] for i in missing]), strict=True):
                answers[i] = answer
        self._count([answer for answer in answers if answer is not AGAIN])
        return answers

    def _count(self, answers: Sequence[MaybeStale[Choice]]) -> None:
        refused = sum(each.value.lease in _NO_LEASE for each in answers)
        without = sum(not each.value.worker for each in answers) - refused
        degraded = sum(each.snapshot_age is not None for each in answers if each.value.worker)
        self._metrics.dispatches_chosen.inc(len(answers) - without - refused - degraded)
        self._metrics.dispatches_refused.inc(refused)
        self._metrics.dispatches_degraded.inc(degraded)
        self._metrics.dispatches_no_worker.inc(without)

    async def _verify(self, requests: Sequence[Request]) -> Sequence[MaybeStale[Choice] | Again]:
        """Retry requests that found no worker, in case Redis had lost its registry."""
        none: list[MaybeStale[Choice] | Again] = [MaybeStale(Choice())] * len(requests)
        models = [request.model for request in requests]
        try:
            if not await self._snapshots.verify_missing(models):
                return none
            choices = await self._breaker.call(self._registry.dispatch_some, self._method, requests)
        except StoreError as error:
            try:
                addresses, age = self._degraded.dispatch(models, error)
            except StoreError:
                return none  # the other requests of the batch are booked, so they must get their answers
            return [MaybeStale(Choice(address), age) for address in addresses]
        return [AGAIN if choice is None else MaybeStale(choice) for choice in choices]

    def _dispatch_degraded(self, models: Sequence[str], error: StoreError) -> list[MaybeStale[Choice]]:
        try:
            addresses, age = self._degraded.dispatch(models, error)
        except StoreError:
            self._metrics.dispatches_store_unavailable.inc(len(models))
            raise
        self._metrics.dispatches_degraded.inc(len(models))
        return [MaybeStale(Choice(address), age) for address in addresses]

    async def _find_all(self, finds: Sequence[Find]) -> list[MaybeStale[str]]:
        try:
            found = await self._breaker.call(self._registry.find_workers, finds)
            missing = [find.model for find, worker in zip(finds, found, strict=True) if not (worker or find.excluded)]
            if missing and await self._snapshots.verify_missing(missing):
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
