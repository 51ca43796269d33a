"""Forwards requests to engines by OpenAI's protocol: which model, which engine, and what to try after a failure."""

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

from controller.availability.known_models import KnownModels
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.dispatch.affinity_rules import AffinityRules
from controller.dispatch.dispatcher import Assignment, Dispatcher
from controller.domain.engine import Protocol, indexed_name
from controller.domain.engine_status import EngineModel
from controller.domain.errors import (
    InvalidInput,
    ModelNotFound,
    NoWorker,
    StoreError,
    StreamBroken,
    WorkerBusy,
    WorkerError,
    WorkerRefused,
    WorkerUnreachable,
)
from controller.domain.hops import hop_headers
from controller.metrics import Metrics
from controller.proxy.bookings import Bookings
from controller.proxy.exchanges import Exchanges
from controller.proxy.fastchat_models import FastChatModels
from controller.proxy.forwarded import Forwarded
from controller.proxy.model_field import ModelField
from controller.proxy.retry_budget import RetryBudget
from controller.proxy.running import RunningForwards
from controller.proxy.trials import Outcome, Trials
from controller.upstream.client import WorkerClient
from controller.upstream.engines.verdicts import Verdict, judge, may_be_retried
from controller.upstream.response import WorkerResponse

logger = logging.getLogger("controller")

Candidates = Callable[[str], Sequence[str]]
_MAX_JUDGED: Final = 64 * 1024  # bytes of an error. A longer one is passed on without a retry


def only_itself(model: str) -> Sequence[str]:
    """Return the names to try for a model that has no route."""
    return (model,)


class GatewayRequest(NamedTuple):
    """A request of OpenAI's kind.

    query: encoded, without the question mark.
    headers: those that an engine gets.
    passed: those of `headers` that a worker of FastChat's protocol gets: the request id and the trace context.
    hops: hop list of the request.
    """

    path: str
    query: str
    field: ModelField
    headers: Mapping[str, str]
    passed: Mapping[str, str]
    hops: str = ""


class Served(NamedTuple):
    """A response, and the model that was asked for it.

    response: an error response that was read whole is a WorkerRefused.
    """

    model: str
    response: Forwarded | WorkerRefused
    snapshot_age: float | None = None


class Gateway:
    """The address of a cluster for OpenAI's clients.

    A request goes to an engine that serves its model. If only workers of FastChat's protocol do, it goes to one of
    these, which may have the route too. It is retried on another engine if an engine fails or is busy before the first
    byte of its response, as far as the retry budget allows it.

    candidates: returns the names of the models to try for a model, in order.
    routed: returns the names for which this is not only the model itself.
    cluster_id: returns the id of this cluster for the hop list.
    tries: maximum number of engines that one request is sent to, for each of the names.
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
        known: KnownModels,
        fastchat: FastChatModels,
        affinity: AffinityRules,
        metrics: Metrics,
        cluster_id: Callable[[], str],
        tries: int,
        candidates: Candidates = only_itself,
        routed: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._snapshots = snapshots
        self._bookings = bookings
        self._running = running
        self._budget = budget
        self._trials = trials
        self._known = known
        self._fastchat = fastchat
        self._affinity = affinity
        self._metrics = metrics
        self._cluster_id = cluster_id
        self._tries = tries
        self._candidates = candidates
        self._routed = routed
        self._exchanges = Exchanges(workers, bookings, metrics)

    async def forward(self, request: GatewayRequest) -> Served:
        """Return the response to a request, when the first piece of its body has arrived.

        An error response of an engine is returned like any other. Raises WorkerError if there is none because the
        engines failed. Raises ModelNotFound, NoWorker if the model is known but has no live worker, WrongProtocol,
        TooManyForwards, LoopDetected and StoreError.
        """
        headers = {**request.headers, **hop_headers(request.hops, self._cluster_id())}
        request = request._replace(headers=headers)
        failure: WorkerError | None = None
        failed_model = ""
        for model in self._candidates(request.field.name):
            if failure is not None and not (self._exchanges.may_retry and self._take_retry()):
                break
            try:
                served = await self._serve(model, request)
            except WorkerError as error:
                failure, failed_model = _more_telling(failure, error), model
                continue
            if served is not None:
                return served
            if failure is not None:
                self._budget.give_back()  # there was nothing to retry on
        if isinstance(failure, WorkerRefused):
            return Served(failed_model, failure)
        raise failure or await self.missing(request.field.name)

    async def list_models(self) -> MaybeStale[list[EngineModel]]:
        """Return the models that live engines serve, and the names with a route to one of them, sorted.

        The length of a model is the least of its engines, as of the last snapshot. Raises StoreError.
        """
        listed, snapshot_age = await self._dispatcher.list_models(protocol=Protocol.OPENAI)
        names = frozenset(listed)
        lengths: dict[str, int] = {}
        for worker in self._snapshots.workers():
            for name, length in worker.engine.max_lengths.items() if worker.engine is not None else ():
                lengths[name] = min(length, lengths.get(name, length))
        served = {name: lengths.get(name) for name in names}
        for name in self._routed():
            targets = [target for target in self._candidates(name) if target in names]
            if targets:
                served[name] = min((lengths[target] for target in targets if target in lengths), default=None)
        return MaybeStale([EngineModel(*model) for model in sorted(served.items())], snapshot_age)

    async def missing(self, model: str) -> NoWorker | ModelNotFound:
        """Return the error for a model that no live engine serves. Raises StoreError."""
        name = repr(model[:100])
        is_fastchats, _ = await self._dispatcher.find_worker(model)
        if not is_fastchats and await self._known.has(model):
            return NoWorker(f"No live worker serves the model {name} now. Send the request again later.")
        return ModelNotFound(f"The model {name} does not exist. GET /v1/models lists the models.")

    async def _serve(self, model: str, request: GatewayRequest) -> Served | None:
        """Return the response to a request with one of the names of its model. None if no live worker serves it."""
        if await self._has_engines(model):
            served = await self._serve_by_engines(model, request)
            if served is not None:
                return served
        found = await self._fastchat.call(model, request.path, request.field, request.hops, request.passed)
        return Served(model, *found) if found is not None else None

    async def _has_engines(self, model: str) -> bool:
        snapshot = self._snapshots.snapshot
        if snapshot is not None and snapshot.serves(indexed_name(model, Protocol.OPENAI)):
            return True
        address, _ = await self._dispatcher.find_worker(model, protocol=Protocol.OPENAI)
        return bool(address)

    async def _serve_by_engines(self, model: str, request: GatewayRequest) -> Served | None:
        running = self._running.begin()
        outcome = "client_gone"
        try:
            (chosen, is_trial), snapshot_age = await self._choose(model, request)
            if not chosen.address:
                outcome = "no_worker"
                return None
            self._budget.count_request()
            forwarded = await self._try_engines(model, request, chosen, is_trial, running)
        except StoreError:
            outcome = "no_worker"
            raise
        except InvalidInput:
            outcome = "client_error"
            raise
        except WorkerError as error:
            outcome = "broken"
            if isinstance(error, WorkerRefused):
                outcome = "busy" if isinstance(error, WorkerBusy) else "engine_error"
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
        chosen, snapshot_age = await self._bookings.choose(
            model, Protocol.OPENAI, affinity=self._affinity.find_in(model, request.headers, request.field.body)
        )
        return MaybeStale((chosen, False), snapshot_age)

    async def _try_engines(
        self, model: str, request: GatewayRequest, chosen: Assignment, is_trial: bool, running: object
    ) -> Forwarded:
        """Return the response of the chosen engine, or of another one if it fails before the first piece."""
        tried = {chosen.address}
        failure: WorkerError | None = None
        while True:
            try:
                return await self._exchange(model, request, chosen, is_trial, running)
            except WorkerError as error:
                failure = _more_telling(failure, error)
                another = None
                if self._exchanges.may_retry and len(tried) < self._tries and self._take_retry():
                    another = await self._bookings.choose_another(model, tried, Protocol.OPENAI)
                    if another is None:
                        self._budget.give_back()
                if another is None:
                    if failure is error:
                        raise
                    raise failure from error
                logger.warning(
                    "Retrying a request on engine %(worker)s: %(reason)s", {"worker": another.address, "reason": error}
                )
                self._metrics.forward_retries.inc()
                chosen, is_trial = another, False

    async def _exchange(
        self, model: str, request: GatewayRequest, chosen: Assignment, is_trial: bool, running: object
    ) -> Forwarded:
        outcome = Outcome.UNKNOWN
        try:
            forwarded = await self._send(model, request, chosen, running)
            if forwarded.status < 400:
                outcome = Outcome.SUCCEEDED
        except WorkerError as error:
            outcome = Outcome.FAILED if _is_failure(error) else Outcome.UNKNOWN
            raise
        finally:
            if is_trial:
                self._trials.end(chosen.address, outcome)
        return forwarded

    async def _send(self, model: str, request: GatewayRequest, chosen: Assignment, running: object) -> Forwarded:
        """Send a request to one engine, with the engine's own name of the model and its key."""
        name = chosen.address
        try:
            worker = await self._snapshots.find(name)
            engine = worker.engine if worker is not None else None
            if worker is None or engine is None:
                raise StreamBroken(f"{name} is not registered as an engine any more.")  # noqa: TRY301 - the lease is released below
            body = request.field.renamed(engine.aliases.get(model, model))
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
            return await _pieces(response)

        def on_end(outcome: str, _: int) -> None:
            self._running.end(running)
            self._metrics.gateway_requests.count(_counted(outcome, status), model)

        forwarded = await self._exchanges.run(
            chosen,
            lambda: self._workers.post_to_engine(name, target, body, headers, key),
            read,
            _is_failure,
            on_end,
            late_failures_count=True,
        )
        if was_failing and status < 400:
            self._bookings.recover(name)
        return forwarded

    def _take_retry(self) -> bool:
        if self._budget.take():
            return True
        self._metrics.refused_retries.inc()
        return False


def _is_failure(error: WorkerError) -> bool:
    """Return True if an error deprioritises the engine. A silent engine may have a long queue."""
    if isinstance(error, WorkerRefused):
        return not isinstance(error, WorkerBusy)
    return isinstance(error, WorkerUnreachable | StreamBroken)


def _more_telling(before: WorkerError | None, error: WorkerError) -> WorkerError:
    """Return the one of two failures that the client gets: the last response of an engine, if there was any."""
    return before if isinstance(before, WorkerRefused) and not isinstance(error, WorkerRefused) else error


def _counted(outcome: str, status: int) -> str:
    if outcome != "complete" or status < 400:
        return outcome
    return "engine_error" if status >= 500 else "client_error"


async def _pieces(response: WorkerResponse) -> AsyncGenerator[bytes]:
    """Return the body of a response. Raises WorkerBusy or WorkerRefused if another engine might do better."""
    pieces = response.pieces()
    if not may_be_retried(response.status):
        return pieces
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) > _MAX_JUDGED:
            return _joined(body, pieces)
    verdict = judge(response.status, response.headers, body)
    if verdict is Verdict.REQUEST:
        return _joined(body, pieces)
    kind = WorkerBusy if verdict is Verdict.BUSY else WorkerRefused
    raise kind(f"{response.url} returned status {response.status}.", response.status, response.headers, body)


async def _joined(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece
