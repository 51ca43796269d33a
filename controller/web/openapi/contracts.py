"""The bodies, parameters and errors of each route.

The API document and the reference page are generated from these contracts, the docstrings of the handlers, and the
route table. Tests compare the contracts with the responses of real controllers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from controller.domain.diagnosis import Diagnosis
from controller.domain.errors import (
    ControllerError,
    EventsUnavailable,
    InvalidInput,
    LoopDetected,
    ModelNotFound,
    NoWorker,
    ReplicaBusy,
    ShuttingDown,
    StoreIncompatible,
    StoreRejection,
    StoreUnavailable,
    StreamBroken,
    TooManyFollowers,
    TooManyForwards,
    TooManyLeases,
    TooManyWorkers,
    WorkerNotAllowed,
    WorkerSilent,
    WorkerUnreachable,
)
from controller.json_bodies import MODEL_NAME, described
from controller.web.errors import status_of_kind
from controller.web.schemas import admin, admin_responses, fastchat, next_dispatch, openai, responses
from controller.web.schemas.overview import Overview

DEGRADED: Final = "X-Controller-Degraded"
ERROR: Final = "X-Controller-Error"
# Errors of a call to Redis.
STORE: Final = (StoreUnavailable, StoreIncompatible, ReplicaBusy, StoreRejection)
Errors = tuple[type[ControllerError], ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query, or a header of a request."""

    name: str
    description: str
    schema: Mapping[str, Any]
    location: Literal["query", "header", "path"] = "query"
    required: bool = False


@dataclass(frozen=True)
class Contract:
    """The bodies, parameters and errors of one route.

    body: the type of the request's body. None if the route ignores it.
    returns: the type of the JSON in a response with status 200.
    media: other media types of a 200, each with a description.
    headers: headers that a 200 may have.
    without_body: what further statuses without a body mean.
    codes: codes of errors that are no ControllerError, by status, each with its meaning.
    errors: the errors by status, without the errors that the endpoint or the protocol raises on other routes too.
    forwards: the route passes on responses of workers, of any status.
    summary: what the route does, if the docstring of its handler is about several routes.
    """

    returns: Any = None
    body: Any = None
    media: Mapping[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    errors: Mapping[int, Errors] = field(default_factory=dict)
    codes: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    without_body: Mapping[int, str] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    forwards: bool = False
    summary: str = ""


def by_status(*errors: type[ControllerError]) -> dict[int, Errors]:
    """Return errors by the status of their responses."""
    found: dict[int, Errors] = {}
    for error in errors:
        status = status_of_kind(error)
        found[status] = (*found.get(status, ()), error)
    return dict(sorted(found.items()))


_MODELS: Final = Contract(responses.Models, headers=(DEGRADED, ERROR))
_OPERATION: Final = Contract(responses.Exists, fastchat.OperationRequest, errors=by_status(InvalidInput, *STORE))
_LISTED: Final = by_status(*STORE)
# Statuses of a parent's request. The other callers get a 200 with the same body, as FastChat's clients need it.
_FORWARDED: Final[Mapping[int, Errors]] = {
    400: (InvalidInput,),
    502: (WorkerUnreachable, WorkerNotAllowed, WorkerSilent, StreamBroken),
    503: (NoWorker, *STORE, TooManyForwards),
    508: (LoopDetected,),
}


def _forwarded(summary: str) -> Contract:
    returns = Annotated[Any, described("The response of the worker, or a `WorkerFailure`.")]
    return Contract(
        returns,
        fastchat.ModelRequest,
        media={"*/*": "The response of the worker, if it has another type."},
        headers=(DEGRADED,),
        errors=_FORWARDED,
        forwards=True,
        summary=summary,
    )


_PAGE: Final = Contract(
    media={
        "text/html": "The page.",
        "text/css": "A style sheet.",
        "text/javascript": "A script.",
        "image/svg+xml": "A picture.",
    },
    headers=("ETag",),
    parameters=(
        Parameter("If-None-Match", "The `ETag` of the copy that the client has.", {"type": "string"}, "header"),
    ),
    without_body={304: "The copy of the client is current."},
)


CONTRACTS: Final[Mapping[str, Contract]] = {
    "/get_worker_address": Contract(
        responses.Address,
        fastchat.DispatchRequest,
        headers=(DEGRADED, ERROR),
        errors=by_status(InvalidInput, TooManyLeases),
    ),
    "/release_worker": Contract(responses.Released, fastchat.LeaseRequest, errors=by_status(InvalidInput, *STORE)),
    "/renew_lease": Contract(responses.Renewed, fastchat.LeaseRequest, errors=by_status(InvalidInput, *STORE)),
    "/report_failure": Contract(responses.Exists, fastchat.WorkerRequest, errors=by_status(InvalidInput, *STORE)),
    "/list_models": _MODELS,
    "/list_multimodal_models": _MODELS,
    "/list_language_models": _MODELS,
    "/worker_generate_stream": Contract(
        None,
        fastchat.ModelRequest,
        media={
            "application/octet-stream": "Frames. Each is a JSON object, and ends with a NUL byte.",
            "*/*": "The frames, with the content type that the worker sent.",
        },
        headers=(DEGRADED,),
        errors=_FORWARDED,
        forwards=True,
    ),
    "/worker_generate": _forwarded("Generate a text on a worker, and return it as a whole."),
    "/worker_get_embeddings": _forwarded("Embed texts on a worker."),
    "/count_token": _forwarded("Count the tokens of a prompt on a worker."),
    "/worker_get_conv_template": _forwarded("Return the conversation template of a model from a worker."),
    "/model_details": _forwarded("Return the context length of a model from a worker."),
    "/v1/models": Contract(
        openai.OpenAiModels, headers=(DEGRADED,), errors=by_status(InvalidInput, LoopDetected, *STORE)
    ),
    "/v1/models/{model:path}": Contract(
        openai.OpenAiModel,
        headers=(DEGRADED,),
        errors=by_status(InvalidInput, LoopDetected, ModelNotFound, NoWorker, *STORE),
        parameters=(Parameter("model", "The name of the model.", {"type": "string"}, "path", True),),
    ),
    "/worker_get_status": Contract(
        responses.TotalStatus, headers=(DEGRADED,), errors=by_status(InvalidInput, LoopDetected, *STORE)
    ),
    "/receive_heart_beat": Contract(
        responses.Exists,
        Annotated[
            fastchat.Heartbeat,
            described(
                "",
                anyOf=[
                    {"properties": {"queue_length": {"type": "number"}}},
                    {"required": ["engine_age"], "properties": {"engine_age": {"type": "number"}}},
                ],
            ),
        ],
        errors=by_status(InvalidInput, *STORE),
    ),
    "/register_worker": Contract(
        None,
        fastchat.Registration,
        errors=by_status(InvalidInput, WorkerNotAllowed, WorkerUnreachable, LoopDetected, TooManyWorkers, *STORE),
    ),
    "/register_engine": Contract(
        admin_responses.RegisteredEngine,
        admin.EngineRequest,
        errors=by_status(InvalidInput, WorkerNotAllowed, WorkerUnreachable, TooManyWorkers, *STORE),
    ),
    "/drain_worker": Contract(
        admin_responses.Draining, fastchat.OperationRequest, errors=by_status(InvalidInput, *STORE)
    ),
    "/resume_worker": _OPERATION,
    "/remove_worker": _OPERATION,
    "/refresh_all_workers": Contract(None, headers=(ERROR,)),
    "/set_capacity": Contract(
        admin_responses.PreviousCapacity,
        Annotated[
            admin.CapacityRequest,
            described(
                "",
                oneOf=[
                    {"required": [name], "properties": {name: {"type": "string"}}} for name in ("worker_name", "model")
                ],
            ),
        ],
        errors=by_status(InvalidInput, *STORE),
    ),
    "/set_model_route": Contract(
        admin_responses.Unserved, admin.ModelRouteRequest, errors=by_status(InvalidInput, *STORE)
    ),
    "/remove_model_route": Contract(responses.Exists, admin.RoutedNameRequest, errors=by_status(InvalidInput, *STORE)),
    "/model_routes": Contract(admin_responses.ModelRoutes, headers=(DEGRADED,), errors=_LISTED),
    "/create_token": Contract(
        admin_responses.NewSecret,
        admin.TokenRequest,
        errors=by_status(InvalidInput, *STORE),
    ),
    "/revoke_token": Contract(responses.Exists, admin.TokenNameRequest, errors=by_status(InvalidInput, *STORE)),
    "/tokens": Contract(admin_responses.Tokens),
    "/capacities": Contract(admin_responses.SetCapacities, headers=(DEGRADED,), errors=_LISTED),
    "/engines": Contract(admin_responses.RegisteredEngines, errors=_LISTED),
    "/replicas": Contract(admin_responses.Replicas, errors=_LISTED),
    "/explain": Contract(
        next_dispatch.NextDispatch,
        headers=(DEGRADED,),
        errors=by_status(InvalidInput, *STORE),
        parameters=(Parameter("model", "The name of the model.", {"type": "string", **MODEL_NAME}, required=True),),
    ),
    "/workers": Contract(admin_responses.Workers, headers=(DEGRADED,), errors=_LISTED),
    "/events": Contract(
        media={
            "application/x-ndjson": "One JSON object a line.",
            "text/event-stream": "The same objects as server-sent events, which continue as they happen.",
        },
        errors=by_status(InvalidInput, *STORE, EventsUnavailable, TooManyFollowers),
        parameters=(
            Parameter(
                "after",
                "The id of an event. The response has the later events. Without it, it has the last ones.",
                {"type": "string", "pattern": r"^(\d{1,20}-\d{1,20})?$"},
            ),
            Parameter(
                "limit",
                "The number of events.",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            ),
            Parameter("follow", "Continue with new events as they happen.", {"type": "boolean", "default": False}),
            Parameter(
                "Last-Event-ID",
                "Takes the place of `after`. A browser's EventSource sends it after a lost connection.",
                {"type": "string", "pattern": r"^(\d{1,20}-\d{1,20})?$"},
                "header",
            ),
        ),
    ),
    "/overview": Contract(
        Overview,
        media={"text/event-stream": "The state, and once a second what has changed, as server-sent events."},
        errors=by_status(TooManyFollowers),
    ),
    "/diagnosis": Contract(Diagnosis),
    "/": replace(_PAGE, summary="Return the page itself."),
    "/page/{file:path}": replace(
        _PAGE,
        summary="Return one of its files.",
        parameters=(
            *_PAGE.parameters,
            Parameter("file", "The version of the page and the name of the file.", {"type": "string"}, "path", True),
        ),
        codes={404: {"not_found": "The page has no such file."}},
    ),
    "/metrics": Contract(media={"text/plain": "Prometheus's text format, version 0.0.4."}),
    "/test_connection": Contract(Literal["success"]),
    "/healthz": Contract(responses.Health),
    "/readyz": Contract(responses.Ready, headers=(DEGRADED,), errors=by_status(*STORE, ShuttingDown)),
    "/openapi.json": Contract(dict[str, Any]),
    "/docs": Contract(media={"text/html": "The page. It needs no scripts."}),
}
