"""The bodies of responses to operators. The API document has the types and their descriptions."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from controller.domain.capacity import CapacityList, CapacityTarget
from controller.domain.model_route import ModelRoute
from controller.domain.worker import Worker
from controller.fleet.engines import EngineState
from controller.fleet.replicas import ReplicaDescription
from controller.json_bodies import described
from controller.security.tokens import Token
from controller.web.schemas.fields import KnownWorker, ModelName
from controller.web.schemas.overview import MissingModel


class ListedWorker(Struct):
    """A live worker. Times and ages are in seconds."""

    worker_name: KnownWorker
    model_names: Annotated[tuple[str, ...], described("As registered, without duplicates.", ["echo"])]
    speed: Annotated[int | float, described("As registered.", 1)]
    queue_length: Annotated[int, described("The current estimate of running and waiting requests.", 0)]
    leased: Annotated[int, described("The number of active leases.", 0)]
    capacity: Annotated[int | None, described("How many requests it runs at once. `null` if that is unknown.", 8)]
    capacity_source: Annotated[
        Literal["reported", "configured", "learned"] | None,
        described("Where the capacity comes from. `learned`: from an engine's load. `null` if it is unknown."),
    ]
    draining: Annotated[bool, described("It gets no more requests.")]
    drained: Annotated[bool, described("It is draining and has finished its requests.")]
    failing: Annotated[
        Literal["request", "polls"] | None,
        described("What has failed, so that it is used only if no other worker can be. `null` if nothing has."),
    ]
    polled: Annotated[bool, described("It has answered a poll.")]
    multimodal: Annotated[bool, described("As registered.")]
    check_heart_beat: Annotated[bool, described("As registered.")]
    heartbeat_age: Annotated[float, described("Seconds since the last heartbeat.", 12.4)]
    expires_in: Annotated[float | None, described("Seconds until the heartbeat expires. `null` means never.", 77.6)]
    stalled_for: Annotated[
        float | None,
        described(
            "Seconds for which none of its requests has finished, as far as this replica has seen. `null` if its last "
            "report was 0, if it sends no heartbeats and has answered no poll, or if it is an engine with requests of "
            "other clients only."
        ),
    ]
    registered_by: Annotated[str | None, described("The name of the token that registered it, or `null`.")]
    engine: Annotated[
        str | None, described("The kind of inference engine. `null` if it speaks FastChat's protocol.", "vllm")
    ]

    @classmethod
    def of(cls, worker: Worker, stalled_for: float | None) -> "ListedWorker":
        """Return the entry of a worker. stalled_for: as in Stalls."""
        return cls(
            worker_name=worker.name,
            model_names=worker.status.model_names,
            speed=worker.status.speed,
            queue_length=worker.status.queue_length,
            leased=worker.leased,
            capacity=worker.status.capacity,
            capacity_source=worker.capacity_source or None,  # type: ignore[arg-type]  # the store holds one of these
            draining=worker.draining,
            drained=worker.drained,
            failing=worker.failing or None,  # type: ignore[arg-type]  # the store holds one of these
            polled=worker.polled,
            multimodal=worker.multimodal,
            check_heart_beat=worker.check_heart_beat,
            heartbeat_age=worker.heartbeat_age,
            expires_in=worker.expires_in,
            stalled_for=None if stalled_for is None else round(stalled_for, 1),
            registered_by=worker.registered_by or None,
            engine=worker.engine.kind if worker.engine else None,
        )


class Workers(Struct):
    """All live workers, and the models that have lost theirs."""

    workers: list[ListedWorker]
    missing_models: Annotated[
        list[MissingModel], described("The models that had a live worker in the last 12 hours and have none now.", [])
    ]

    @classmethod
    def of(
        cls,
        workers: Sequence[Worker],
        stalled_for: Callable[[Worker], float | None],
        missing: Mapping[str, float],
    ) -> "Workers":
        """Return the body of a list. stalled_for: as in Stalls. missing: as in KnownModels, perhaps a moment older."""
        live = {model for worker in workers for model in worker.status.model_names} if missing else ()
        return cls(
            [ListedWorker.of(worker, stalled_for(worker)) for worker in workers],
            [MissingModel(model, round(since, 1)) for model, since in missing.items() if model not in live],
        )


class Draining(Struct):
    """The result of draining a worker."""

    exist: Annotated[bool, described("`false`: there is no such live worker, and nothing was done.", True)]
    drained: Annotated[
        bool,
        described(
            "`true`: the worker has finished its requests. `false`: it has not, or this replica does not know it yet."
        ),
    ]


class RegisteredEngine(Struct):
    """An engine that was registered. The replicas poll it until it is removed."""

    worker_name: KnownWorker
    engine: Annotated[str, described("Its kind. `auto` if it is not known yet.", "vllm")]
    alive: Annotated[bool, described("It is ready, and gets requests.")]
    problem: Annotated[str | None, described("Why it gets no requests, or fewer. `null` if there is no reason.")]
    model_names: Annotated[tuple[str, ...], described("The public names of the models that it serves.", ["qwen-8b"])]
    capacity: Annotated[int | None, described("How many requests it runs at once. `null` if that is unknown.", 64)]
    speed: Annotated[int | float, described("As registered.", 1)]
    has_key: Annotated[bool, described("It was registered with a key.")]
    registered_by: Annotated[str | None, described("The name of the token that registered it, or `null`.")]
    source: Annotated[
        str | None,
        described("`file` if `--workers-file` lists it, `dns` if `--workers-dns` does, `null` if it was registered."),
    ]

    @classmethod
    def of(cls, state: EngineState) -> "RegisteredEngine":
        """Return the entry of an engine."""
        return cls(
            worker_name=state.name,
            engine=state.kind,
            alive=state.alive,
            problem=state.problem or None,
            model_names=state.models,
            capacity=state.capacity,
            speed=state.entry.speed,
            has_key=bool(state.entry.key),
            registered_by=state.entry.registered_by or None,
            source=state.entry.source or None,
        )


class RegisteredEngines(Struct):
    """All registered engines, sorted by name."""

    engines: list[RegisteredEngine]

    @classmethod
    def of(cls, states: Iterable[EngineState]) -> "RegisteredEngines":
        """Return the body of a list."""
        return cls([RegisteredEngine.of(state) for state in states])


class PreviousCapacity(Struct):
    """The result of setting a capacity."""

    previous: Annotated[int | None, described("What was set before. `null` if nothing was.")]
    workers: Annotated[int, described("The number of live workers that the setting concerns.", 1)]


class SetCapacity(Struct, kw_only=True):
    """A capacity that was set, for a worker or for the workers of a model."""

    worker_name: KnownWorker | UnsetType = UNSET
    model: ModelName | UnsetType = UNSET
    capacity: Annotated[int, described("How many requests each worker runs at once.", 4)]

    @classmethod
    def of(cls, target: CapacityTarget, capacity: int) -> "SetCapacity":
        """Return the entry of a target."""
        return cls(worker_name=target.worker_name or UNSET, model=target.model or UNSET, capacity=capacity)


class SetCapacities(Struct):
    """The capacities that were set: first those of models, then those of workers."""

    capacities: list[SetCapacity]

    @classmethod
    def of(cls, capacities: CapacityList) -> "SetCapacities":
        """Return the body of a list."""
        return cls([SetCapacity.of(*each) for each in sorted(capacities.by_target.items())])


UnservedModels = Annotated[
    list[str],
    described(
        "Those of its models that no live worker serves now: targets with a weight above 0 and fallbacks.",
        ["qwen-7b-next"],
    ),
]


class Unserved(Struct):
    """The result of setting a route."""

    unserved: UnservedModels

    @classmethod
    def of(cls, route: ModelRoute, served: Collection[str]) -> "Unserved":
        """Return the body of a response. served: the models that live workers serve."""
        return cls([model for model in route.models if model not in served])


class ListedModelRoute(Struct):
    """The route of a name."""

    model: Annotated[str, described("The name that clients send as their model.", "gpt-small")]
    targets: Annotated[
        Mapping[str, int],
        described("The weight of each model that serves the requests.", {"qwen-7b": 90, "qwen-7b-next": 10}),
    ]
    fallbacks: Annotated[
        Sequence[str], described("The models to try when no target has a live worker, in this order.", ["qwen-1b"])
    ]
    unserved: UnservedModels


class ModelRoutes(Struct):
    """The routes of model names, sorted by name."""

    model_routes: list[ListedModelRoute]

    @classmethod
    def of(cls, routes: Mapping[str, ModelRoute], served: Collection[str]) -> "ModelRoutes":
        """Return the body of a list. served: the models that live workers serve."""
        return cls(
            [
                ListedModelRoute(model, route.targets, route.fallbacks, Unserved.of(route, served).unserved)
                for model, route in routes.items()
            ]
        )


class NewSecret(Struct):
    """The secret of a new token."""

    token: Annotated[str, described("The secret. It is shown only this once.")]


class ListedToken(Struct):
    """A token, without its secret."""

    name: Annotated[str, described("Its name, which appears in logs.", "rack-1")]
    plane: Annotated[str, described("The plane whose routes it opens.", "worker")]
    source: Annotated[
        Literal["environment", "file", "store"],
        described("Where it comes from. `store`: it was created at runtime.", "store"),
    ]
    workers: Annotated[tuple[str, ...], described("Patterns of the workers that it may speak for. Empty: all.")]
    models: Annotated[tuple[str, ...], described("Patterns of the models that they may serve. Empty: all.")]


class Tokens(Struct):
    """The tokens, by plane and name."""

    tokens: list[ListedToken]

    @classmethod
    def of(cls, tokens: Iterable[tuple[str, Token]]) -> "Tokens":
        """Return the body of a list. tokens: each with its source."""
        return cls(
            [
                ListedToken(token.name, token.plane, source, token.workers, token.models)  # type: ignore[arg-type]
                for source, token in sorted(tokens, key=lambda each: (each[1].plane, each[1].name))
            ]
        )


class ListedReplica(Struct):
    """A live replica."""

    id: Annotated[str, described("Identifies the replica.")]
    name: Annotated[str, described("Its host name, port and process id. The id if these are unknown.", "gpu-1:21001/7")]
    version: Annotated[str, described("The version of the controller. Empty if it is unknown.")]
    started_at: Annotated[float | None, described("In seconds since 1970. `null` if it is unknown.", 1795699720.693)]
    settings: Annotated[Mapping[str, Any], described("Its settings by name, without secrets.")]


class Replicas(Struct):
    """The live replicas, by name."""

    replicas: list[ListedReplica]

    @classmethod
    def of(cls, replicas: Sequence[ReplicaDescription]) -> "Replicas":
        """Return the body of a list."""
        return cls([ListedReplica(*replica) for replica in replicas])
