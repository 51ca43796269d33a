"""The bodies of the routes for operators that FastChat's controller does not have."""

from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple

import msgspec

from controller.domain.capacity import CapacityTarget, check_capacity
from controller.domain.engine_entry import AUTO, MAX_KEY_LENGTH, EngineEntry
from controller.domain.engine_status import AgentReport, EngineKind
from controller.domain.errors import InvalidInput
from controller.domain.model_route import ModelRoute, whole_weight
from controller.domain.worker import (
    MAX_MODELS,
    MAX_QUEUE_LENGTH,
    MAX_SPEED,
    MIN_SPEED,
    model_name,
    whole_queue_length,
    worker_name,
)
from controller.json_bodies import MODEL_NAME, Capacity, JsonBody, described
from controller.security.tokens import Plane, parse_plane, token_name
from controller.web.schemas.fields import (
    AGE,
    MAX_REASON,
    URL,
    Fallbacks,
    ModelPatterns,
    RoutedName,
    Targets,
    TokenName,
    TokenPlane,
    WorkerPatterns,
    check_age,
)

MAX_LENGTH: Final = 10**9  # tokens


class CapacityRequest(msgspec.Struct):
    """A capacity for a worker, or for each worker of a model. One of the two is needed."""

    # Required, because a misspelt name must not remove a capacity.
    capacity: Annotated[
        Capacity, described("How many requests each worker runs at once. `null` removes what was set.", 4)
    ]
    worker_name: Annotated[str | None, described("The name of the worker.", type=["string", "null"], **URL)] = None
    model: Annotated[
        str | None, described("The model of the workers.", "echo", type=["string", "null"], **MODEL_NAME)
    ] = None


class ModelRouteRequest(msgspec.Struct):
    """The models that serve the requests of a name."""

    model: RoutedName
    targets: Targets
    fallbacks: Fallbacks = []


class RoutedNameRequest(msgspec.Struct):
    """A request about the route of a name."""

    model: RoutedName


class TokenRequest(msgspec.Struct):
    """A token to create."""

    plane: TokenPlane
    name: TokenName
    workers: WorkerPatterns = []
    models: ModelPatterns = []


class TokenNameRequest(msgspec.Struct):
    """A request about a token."""

    name: TokenName


class EngineReport(msgspec.Struct):
    """The state of an engine, as its agent knows it."""

    queue_length: Annotated[
        int | None,
        described(
            "The number of running and waiting requests. `null` if the engine does not say it.",
            0,
            type=["integer", "null"],
            minimum=0,
            maximum=MAX_QUEUE_LENGTH,
        ),
    ] = None
    age: Annotated[int | float, described("For how many seconds it has been out of date.", 0, type="number", **AGE)] = 0
    capacity_learned: Annotated[bool, described("Whether the capacity was learned from its load.", False)] = False
    max_lengths: Annotated[
        dict[str, int],
        described(
            "The largest number of tokens of a prompt and its completion, by public name.",
            {"qwen-8b": 4096},
            maxProperties=MAX_MODELS,
            additionalProperties={"type": "integer", "minimum": 1, "maximum": MAX_LENGTH},
        ),
    ] = {}
    problem: Annotated[
        str,
        described(
            "Why it should get no requests. It expires at once then. Empty if it is ready.", maxLength=MAX_REASON
        ),
    ] = ""


class EngineRequest(msgspec.Struct):
    """An engine to register."""

    worker_name: Annotated[
        str, described("The URL below which the engine serves /v1/models.", "http://localhost:8000", **URL)
    ]
    engine: Annotated[str, described("Its kind. `auto` finds it out.", "vllm", enum=[AUTO, *map(str, EngineKind)])] = (
        AUTO
    )
    models: Annotated[
        dict[str, str],
        described(
            "The models to serve: the public name by the engine's own name. Without any, it serves all models under "
            "their own names.",
            {"Qwen/Qwen3-8B": "qwen-8b"},
            maxProperties=MAX_MODELS,
            propertyNames=MODEL_NAME,
            additionalProperties={"type": "string", **MODEL_NAME},
        ),
    ] = {}
    api_key: Annotated[
        str, described("The key that the engine requires.", pattern="^[ -~]*$", maxLength=MAX_KEY_LENGTH)
    ] = ""
    speed: Annotated[
        int | float,
        described("The speed, relative to other workers.", 1, type="number", minimum=MIN_SPEED, maximum=MAX_SPEED),
    ] = 1
    capacity: Annotated[Capacity, described("How many requests it runs at once. `null` to ask the engine.", 64)] = None
    status: Annotated[
        EngineReport | None,
        described(
            "Only the agent of an engine sends it. The controller then does not poll the engine, which is alive as "
            "long as the agent sends heartbeats. `engine` and `models` are needed."
        ),
    ] = None


class EngineRegistration(NamedTuple):
    """A checked registration of an engine. status: None if the controller asks the engine itself."""

    name: str
    entry: EngineEntry
    status: AgentReport | None


class NewToken(NamedTuple):
    """A request to create a token. Its secret is not known yet."""

    plane: Plane
    name: str
    workers: Sequence[str]
    models: Sequence[str]


_capacity: Final = JsonBody(
    CapacityRequest, "body", "Send capacity, which may be null, and either worker_name or model."
)

_model_route: Final = JsonBody(
    ModelRouteRequest, "body", "Send model, targets as an object with a weight for each model, and optional fallbacks."
)
_routed_name: Final = JsonBody(RoutedNameRequest, "body", "Send the name of the model.")
_token: Final = JsonBody(TokenRequest, "body", "Send plane and name, and for a worker token workers and models.")
_engine: Final = JsonBody(EngineRequest, "body", "Send worker_name, and what the engine cannot say itself.")
_token_name: Final = JsonBody(TokenNameRequest, "body", "Send the name of the token.")


def parse_model_route(body: bytes) -> tuple[str, ModelRoute]:
    """Return a request to set the route of a name: the name, and the route."""
    request = _model_route.read(body)
    targets = {name: whole_weight(weight) for name, weight in request.targets.items()}
    return model_name(request.model), ModelRoute(targets, tuple(request.fallbacks))


def parse_routed_name(body: bytes) -> str:
    """Return the name in a request to remove its route."""
    return model_name(_routed_name.read(body).model)


def parse_token(body: bytes) -> NewToken:
    """Return a request to create a token."""
    request = _token.read(body)
    return NewToken(parse_plane(request.plane), request.name, request.workers, request.models)


def parse_token_name(body: bytes) -> str:
    """Return the name in a request to revoke a token."""
    return token_name(_token_name.read(body).name)


def parse_engine(body: bytes) -> EngineRegistration:
    """Return an engine to register."""
    request = _engine.read(body)
    name = worker_name(request.worker_name)
    capacity = None if request.capacity is None else check_capacity(request.capacity)
    entry = EngineEntry(request.engine, request.models, request.api_key, request.speed, capacity)
    report = request.status
    if report is None:
        return EngineRegistration(name, entry, None)
    if entry.kind == AUTO or not entry.names:
        raise InvalidInput("engine", "and models are needed if there is a status. The controller asks no engine then")
    check_age("status.age", report.age)
    queue_length = None if report.queue_length is None else whole_queue_length(report.queue_length)
    if not set(report.max_lengths) <= set(entry.names.values()):
        raise InvalidInput("status.max_lengths", "has a model that is not in models")
    if not all(1 <= length <= MAX_LENGTH for length in report.max_lengths.values()):
        raise InvalidInput("status.max_lengths", f"must have numbers of tokens from 1 to {MAX_LENGTH}")
    if len(report.problem) > MAX_REASON:
        raise InvalidInput("status.problem", f"must have at most {MAX_REASON} characters")
    status = AgentReport(queue_length, report.age, report.capacity_learned, report.max_lengths, report.problem)
    return EngineRegistration(name, entry, status)


def parse_capacity(body: bytes) -> tuple[CapacityTarget, int | None]:
    """Return the target of a request to set a capacity, and the capacity. None removes it."""
    request = _capacity.read(body)
    if request.worker_name is not None and request.model is not None:
        raise InvalidInput("model", "must be left out if there is a worker_name. Send two requests to set both")
    if request.worker_name is not None:
        target = CapacityTarget(worker_name=worker_name(request.worker_name))
    elif request.model is not None:
        target = CapacityTarget(model=model_name(request.model))
    else:
        raise InvalidInput("worker_name", "is missing, and so is model. Send one of the two")
    return target, None if request.capacity is None else check_capacity(request.capacity)
