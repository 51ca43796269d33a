"""Forwards requests to engines by OpenAI's protocol: which model, and what to try if it cannot be served."""

from collections.abc import Callable, Sequence

from controller.availability.known_models import KnownModels
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.dispatch.dispatcher import Dispatcher
from controller.domain.engine import Protocol, indexed_name
from controller.domain.engine_status import EngineModel
from controller.domain.errors import ModelNotFound, NoWorker, WorkerError, WorkerRefused, WrongProtocol
from controller.domain.hops import append_hop, hop_headers
from controller.proxy.engine_models import EngineModels
from controller.proxy.engine_responses import may_be_retried, more_telling
from controller.proxy.fastchat_models import FastChatModels
from controller.proxy.gateway_request import GatewayRequest, Served
from controller.proxy.model_paths import paths_of_models
from controller.proxy.tries import Tries

Candidates = Callable[[str], Sequence[str]]


def only_itself(model: str) -> Sequence[str]:
    """Return the names to try for a model that has no route."""
    return (model,)


class Gateway:
    """The address of a cluster for OpenAI's clients.

    A request goes to an engine that serves its model. If only workers of FastChat's protocol do, it goes to one of
    these, which may have the route too.

    candidates: returns the names of the models to try for a model, in order.
    routed: returns the names for which this is not only the model itself.
    cluster_id: returns the id of this cluster for the hop list.
    tries: maximum number of workers that one request is sent to, for all of the names together.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        snapshots: SnapshotManager,
        known: KnownModels,
        engines: EngineModels,
        fastchat: FastChatModels,
        cluster_id: Callable[[], str],
        tries: int,
        candidates: Candidates = only_itself,
        routed: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._dispatcher = dispatcher
        self._snapshots = snapshots
        self._known = known
        self._engines = engines
        self._fastchat = fastchat
        self._cluster_id = cluster_id
        self._tries = tries
        self._candidates = candidates
        self._routed = routed

    async def forward(self, request: GatewayRequest) -> Served:
        """Return the response to a request, when the first piece of its body has arrived.

        An error response of an engine is returned like any other. Raises WorkerError if there is none because the
        engines failed. Raises ModelNotFound, NoWorker if the model is known but has no live worker, WrongProtocol,
        TooManyForwards, LoopDetected and StoreError.
        """
        headers = {**request.headers, **hop_headers(request.hops, self._cluster_id())}
        request = GatewayRequest(request.path, request.query, request.field, headers, request.passed, request.hops)
        tries = Tries(self._tries)
        failure: WorkerError | None = None
        wrong_protocol: WrongProtocol | None = None
        failed_model = ""
        candidates = self._candidates(request.field.name)
        for model in candidates:
            if failure is not None and not (may_be_retried(failure) and tries.left and self._engines.take_retry()):
                break
            used = tries.used
            try:
                served = await self._serve(model, request, tries)
            except WrongProtocol as error:
                tries.used = used  # the worker did nothing
                served, wrong_protocol = None, wrong_protocol or error
            except WorkerError as error:
                failure, failed_model = more_telling(failure, error), model
                continue
            if served is not None:
                return served
            if failure is not None:
                self._engines.give_back_retry()  # there was nothing to retry on
        if isinstance(failure, WorkerRefused):
            return Served(failed_model, failure)
        if failure is not None:
            raise failure
        if wrong_protocol is None:
            raise await self.missing(request.field.name)
        for model in candidates:
            if await self._known.has(model, Protocol.OPENAI):
                raise _not_live("engine", model) from wrong_protocol
        raise wrong_protocol

    async def list_models(self, hops: str = "") -> MaybeStale[list[EngineModel]]:
        """Return the models that live engines serve, and the names with a route to one of them, sorted.

        The length of a model is the least of its engines, as of the last snapshot.

        hops: hop list of the request. If a cluster asks, it gets the hop list of each model, and no models that this
            cluster has only through it. Otherwise, two clusters that are engines of each other would list a model
            forever that no engine serves any more.

        Raises StoreError, LoopDetected if this cluster asks itself, and InvalidInput.
        """
        cluster = self._cluster_id()
        asking = frozenset(append_hop(hops, cluster).split(",")) if hops else frozenset()
        listed, snapshot_age = await self._dispatcher.list_models(protocol=Protocol.OPENAI)
        if hops and not self._has_seen(listed):
            await self._snapshots.take_now()  # the hop lists are in the snapshot
        workers = self._snapshots.workers()
        paths = {name: f"{cluster},{path}".rstrip(",") for name, path in paths_of_models(workers, asking).items()}
        names = frozenset(listed).intersection(paths) if hops else frozenset(listed)
        lengths: dict[str, int] = {}
        for worker in workers:
            for name, length in worker.engine.max_lengths.items() if worker.engine is not None else ():
                lengths[name] = min(length, lengths.get(name, length))
        served = {name: (lengths.get(name), paths.get(name, "")) for name in names}
        for name in self._routed():
            targets = [target for target in self._candidates(name) if target in names]
            if targets:
                shortest = min((lengths[target] for target in targets if target in lengths), default=None)
                served[name] = shortest, min((paths.get(target, "") for target in targets), key=len)
        return MaybeStale([EngineModel(name, *each) for name, each in sorted(served.items())], snapshot_age)

    def _has_seen(self, models: Sequence[str]) -> bool:
        snapshot = self._snapshots.snapshot
        return snapshot is not None and all(snapshot.serves(indexed_name(name, Protocol.OPENAI)) for name in models)

    async def missing(self, model: str) -> NoWorker | ModelNotFound:
        """Return the error for a model that no live engine serves. Raises StoreError."""
        if await self._known.has(model, Protocol.OPENAI):
            return _not_live("engine", model)
        is_fastchats, _ = await self._dispatcher.find_worker(model)
        if not is_fastchats and await self._known.has(model):
            return _not_live("worker", model)
        return ModelNotFound(f"The model {model[:100]!r} does not exist. GET /v1/models lists the models.")

    async def _serve(self, model: str, request: GatewayRequest, tries: Tries) -> Served | None:
        """Return the response to a request with one of the names of its model. None if no live worker serves it."""
        served = await self._engines.call(model, request, tries)
        if served is not None:
            return served
        found = await self._fastchat.call(model, request, tries)
        return Served(model, *found) if found is not None else None


def _not_live(kind: str, model: str) -> NoWorker:
    return NoWorker(f"No live {kind} serves the model {model[:100]!r} now. Send the request again later.")
