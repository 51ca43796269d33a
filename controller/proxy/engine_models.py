"""Forwards requests to the engines of a model by OpenAI's protocol: which engine, and what to try after a failure."""

import logging
from collections.abc import AsyncGenerator
from math import inf

from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.dispatch.affinity_rules import AffinityRules
from controller.dispatch.dispatcher import Assignment, Dispatcher
from controller.domain.engine import Protocol, indexed_name
from controller.domain.errors import (
    InvalidInput,
    StoreError,
    StreamBroken,
    WorkerBusy,
    WorkerError,
)
from controller.metrics import Metrics
from controller.proxy.bookings import Bookings
from controller.proxy.busy_engines import BusyEngines
from controller.proxy.engine_responses import (
    counted_outcome,
    failed_outcome,
    is_failure,
    is_failure_of_trial,
    judged_pieces,
    may_be_retried,
    more_telling,
)
from controller.proxy.exchanges import Exchanges
from controller.proxy.forwarded import Forwarded
from controller.proxy.gateway_request import GatewayRequest, Served
from controller.proxy.retry_budget import RetryBudget
from controller.proxy.running import RunningForwards
from controller.proxy.trials import Outcome, Trials
from controller.proxy.tries import Tries
from controller.tasks import in_thread_if_large
from controller.upstream.client import WorkerClient
from controller.upstream.response import WorkerResponse

logger = logging.getLogger("controller")


class EngineModels:
    """The models that engines serve.

    A request is retried on another engine if an engine fails or is busy before the first byte of its response, as far
    as its tries and the retry budget allow it.

    worker_timeout: time limit for reading an error of an engine, in seconds.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        workers: WorkerClient,
        snapshots: SnapshotManager,
        bookings: Bookings,
        running: RunningForwards,
        budget: RetryBudget,
        trials: Trials,
        affinity: AffinityRules,
        metrics: Metrics,
        worker_timeout: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._snapshots = snapshots
        self._bookings = bookings
        self._running = running
        self._budget = budget
        self._trials = trials
        self._affinity = affinity
        self._metrics = metrics
        self._worker_timeout = worker_timeout
        self._busy = BusyEngines()
        self._exchanges = Exchanges(workers, bookings, metrics)

    async def call(self, model: str, request: GatewayRequest, tries: Tries) -> Served | None:
        """Return the response of an engine, or None if no live engine serves the model.

        Raises WorkerError if each engine that was tried has failed, and TooManyForwards and StoreError.
        """
        return await self._serve(model, request, tries) if await self._has_engines(model) else None

    def take_retry(self) -> bool:
        """Count a retry if it is allowed. Return False if it is not."""
        if self._exchanges.may_retry and not self._budget.take():
            self._metrics.refused_retries.inc()
            return False
        return self._exchanges.may_retry

    def give_back_retry(self) -> None:
        """Undo take_retry(), because there was nothing to retry on."""
        self._budget.give_back()

    async def _has_engines(self, model: str) -> bool:
        snapshot = self._snapshots.snapshot
        if snapshot is not None and snapshot.serves(indexed_name(model, Protocol.OPENAI)):
            return True
        address, _ = await self._dispatcher.find_worker(model, protocol=Protocol.OPENAI)
        return bool(address)

    async def _serve(self, model: str, request: GatewayRequest, tries: Tries) -> Served | None:
        running = self._running.begin()
        outcome = "client_gone"
        try:
            (chosen, is_trial), snapshot_age = await self._choose(model, request)
            if not chosen.address:
                outcome = "no_worker"
                return None
            if not tries.used:
                self._budget.count_request()
            forwarded = await self._try_engines(model, request, chosen, is_trial, running, tries)
        except StoreError:
            outcome = "no_worker"
            raise
        except InvalidInput:
            outcome = "client_error"
            raise
        except WorkerError as error:
            outcome = failed_outcome(error)
            logger.warning(
                "A request for the model %(model)r failed at its engines: %(reason)s",
                {"model": model[:100], "reason": error},
            )
            raise
        else:
            outcome = ""  # it is counted when the response ends
            return Served(model, forwarded, snapshot_age)
        finally:
            if outcome:
                self._running.end(running)
                self._metrics.gateway_requests.count(outcome, model)

    async def _choose(self, model: str, request: GatewayRequest) -> MaybeStale[tuple[Assignment, bool]]:
        """Choose an engine. Return True with it if the request is the trial of a failing engine."""
        failing = self._trials.take(model) if self._budget.has_room else ""
        if failing:
            return MaybeStale((Assignment(failing, ""), True))
        body = request.field.body
        affinity = await in_thread_if_large(
            len(body), lambda: self._affinity.find_in(model, request.headers, body, request.path)
        )
        chosen, snapshot_age = await self._bookings.choose(model, Protocol.OPENAI, affinity=affinity)
        return MaybeStale((await self._unless_busy(model, chosen), False), snapshot_age)

    async def _unless_busy(self, model: str, chosen: Assignment) -> Assignment:
        """Return the chosen engine, or another one if it refused a request as busy and another did not."""
        busy = self._busy.names()
        if chosen.address not in busy:
            return chosen
        try:
            another = await self._choose_another(model, busy)
        except BaseException:
            self._bookings.end(chosen)
            raise
        if another is None:
            return chosen
        self._bookings.end(chosen)
        return another

    async def _try_engines(
        self, model: str, request: GatewayRequest, chosen: Assignment, is_trial: bool, running: object, tries: Tries
    ) -> Forwarded:
        """Return the response of the chosen engine, or of another one if it fails before the first piece."""
        tried = {chosen.address}
        failure: WorkerError | None = None
        while True:
            tries.use()
            try:
                return await self._exchange(model, request, chosen, is_trial, running)
            except WorkerError as error:
                failure = more_telling(failure, error)
                is_allowed = may_be_retried(error) and tries.left > 0 and self._exchanges.may_retry
                another = await self._choose_retry(model, tried, is_trial) if is_allowed else None
                if another is None:
                    if failure is error:
                        raise
                    raise failure from error
                logger.warning(
                    "Retrying a request on engine %(worker)s: %(reason)s", {"worker": another.address, "reason": error}
                )
                self._metrics.forward_retries.inc()
                chosen, is_trial = another, False

    async def _choose_retry(self, model: str, tried: set[str], is_trial: bool) -> Assignment | None:
        """Choose an engine for a retry and add it to `tried`. Return None if there is none, or the budget is used up.

        The retry of a trial needs no budget, because the controller itself chose an engine that may fail.
        """
        if not (is_trial or self.take_retry()):
            return None
        another = None
        if busy := self._busy.names() - tried:
            another = await self._choose_another(model, tried | busy)
        if another is None:
            another = await self._choose_another(model, tried)
        if another is not None:
            tried.add(another.address)
        elif not is_trial:
            self.give_back_retry()
        return another

    async def _choose_another(self, model: str, excluded: set[str]) -> Assignment | None:
        """Choose an engine that is not excluded. Return None if there is none.

        An excluded engine without load costs least, so the dispatch may choose it each time. The request then goes to
        any other engine that is not failing, and counts as one without a lease.
        """
        another = await self._bookings.choose_another(model, set(excluded), Protocol.OPENAI)
        if another is not None:
            return another
        snapshot = self._snapshots.snapshot
        failing = snapshot.failing_engines.get(model, ()) if snapshot is not None else ()
        try:
            address, _ = await self._dispatcher.find_worker(model, frozenset({*excluded, *failing}), Protocol.OPENAI)
        except StoreError:
            return None
        return Assignment(address, "") if address else None

    async def _exchange(
        self, model: str, request: GatewayRequest, chosen: Assignment, is_trial: bool, running: object
    ) -> Forwarded:
        outcome = Outcome.UNKNOWN
        limit = self._trials.time_limit(chosen.address) if is_trial else inf
        try:
            forwarded = await self._send(model, request, chosen, running, limit)
            if forwarded.status < 400:
                outcome = Outcome.SUCCEEDED
        except WorkerBusy as error:
            self._busy.note(chosen.address, error)
            raise
        except WorkerError as error:
            outcome = Outcome.FAILED if is_failure_of_trial(error) else Outcome.UNKNOWN
            raise
        finally:
            if is_trial:
                self._trials.end(chosen.address, outcome)
        return forwarded

    async def _send(
        self, model: str, request: GatewayRequest, chosen: Assignment, running: object, limit: float
    ) -> Forwarded:
        """Send a request to one engine, with the engine's own name of the model and its key.

        limit: as `trial_limit` in WorkerClient.post_to_engine().
        """
        name = chosen.address
        try:
            worker = await self._snapshots.find(name)
            engine = worker.engine if worker is not None else None
            if worker is None or engine is None:
                raise StreamBroken(f"{name} is not registered as an engine any more.")  # noqa: TRY301 - the lease is released below
            own_name = engine.aliases.get(model, model)
            body = await in_thread_if_large(len(request.field.body), lambda: request.field.renamed(own_name))
        except BaseException:
            self._bookings.end(chosen)
            raise
        target = f"{request.path}?{request.query}" if request.query else request.path
        headers, key = request.headers, engine.key
        was_failing = worker.failing == "request"
        status = 0

        async def read(response: WorkerResponse) -> AsyncGenerator[bytes]:
            nonlocal status
            status = response.status
            return await judged_pieces(response, self._worker_timeout)

        def on_end(outcome: str, _: int) -> None:
            self._running.end(running)
            self._metrics.gateway_requests.count(counted_outcome(outcome, status), model)

        forwarded = await self._exchanges.run(
            chosen,
            lambda: self._workers.post_to_engine(name, target, body, headers, key, limit),
            read,
            is_failure,
            on_end,
            late_failures_count=True,
        )
        if was_failing and status < 400:
            self._bookings.recover(name)
        return forwarded
