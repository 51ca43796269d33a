"""The types of fields that several bodies have, with the descriptions and bounds that the API document shows.

controller/json_bodies.py has those of a worker's status, which workers also send outside of requests.
"""

from typing import Annotated, Any, Final

import msgspec

from controller.domain.errors import InvalidInput
from controller.domain.lease import LEASE, MAX_LEASE_TIME
from controller.domain.model_route import MAX_FALLBACKS, MAX_TARGETS, MAX_WEIGHT
from controller.domain.worker import MAX_NAME_LENGTH, MAX_QUEUE_LENGTH, MIN_SPEED
from controller.json_bodies import MODEL_NAME, described
from controller.security.tokens import MAX_PATTERNS, NAME, PATTERN, TOKEN_PLANES

COMPONENTS: Final = "#/components/schemas/"  # where the document has the types
MAX_REASON: Final = 500  # characters

URL: Final[dict[str, Any]] = {
    "format": "uri",
    "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[^@?#]+$",
    "maxLength": MAX_NAME_LENGTH,
}


def pattern(text: str) -> str:
    """Return a regular expression for `match()` in the syntax of JSON Schema, which searches and lacks a final \\Z."""
    return "^" + text.removesuffix(r"\Z") + "$"


WorkerName = Annotated[str, described("The URL at which clients reach the worker.", "http://localhost:21002", **URL)]
KnownWorker = Annotated[str, described("The name of the worker, which is its URL.", "http://localhost:21002")]
ModelName = Annotated[str, described("The name of a model.", "echo")]
MayLease = Annotated[
    bool | int | float | None,
    described(
        "`true`, or the duration of a lease in seconds. `false`, 0 or `null` mean no lease.",
        True,
        anyOf=[
            {"type": "boolean"},
            {"type": "null"},
            {"const": 0},
            {"type": "number", "minimum": 0.001, "maximum": MAX_LEASE_TIME},
        ],
    ),
]
Lease = Annotated[
    str,
    described(
        "The lease, as `/get_worker_address` returned it.",
        "1795699720693-30000-4-2@http://localhost:21002",
        pattern=pattern(LEASE.pattern),
    ),
]
MAX_AGE: Final = 3_600.0
AGE: Final[dict[str, Any]] = {"minimum": 0, "maximum": MAX_AGE}
HeartbeatQueueLength = Annotated[
    int | float | None,
    described(
        "The number of running and waiting requests. A float is rounded up. `null` if an engine does not say it.",
        0,
        anyOf=[{"type": "number", "minimum": 0, "maximum": MAX_QUEUE_LENGTH}, {"type": "null"}],
    ),
]
EngineAge = Annotated[
    int | float | None,
    described(
        "Only the agent of an engine sends it: for how many seconds the queue length has been out of date. The engine "
        "then expires after `--engine-expiration`.",
        anyOf=[{"type": "number", **AGE}, {"type": "null"}],
    ),
]
Reason = Annotated[str, described("Why, for the log and the events.", "a new driver", maxLength=MAX_REASON)]
Status = Annotated[
    msgspec.Raw,
    described(
        "The status of the worker. If it is left out, `null` or `{}`, the controller requests it from the worker.",
        {"model_names": ["echo"], "speed": 1, "queue_length": 0},
        anyOf=[
            {
                "$ref": f"{COMPONENTS}ReportedStatus",
                "anyOf": [
                    {"properties": {"speed": {"minimum": MIN_SPEED}}},
                    {"properties": {"model_names": {"maxItems": 0}}},
                ],
            },
            {"type": "null"},
            {"type": "object", "maxProperties": 0},
        ],
    ),
]
TokenPlane = Annotated[
    str, described("The plane whose routes the token opens.", "worker", enum=[str(plane) for plane in TOKEN_PLANES])
]
TokenName = Annotated[
    str, described("The name of the token. It appears in logs.", "rack-1", pattern=pattern(NAME.pattern))
]
_PATTERNS: Final = {"maxItems": MAX_PATTERNS, "items": {"type": "string", "pattern": pattern(PATTERN.pattern)}}
WorkerPatterns = Annotated[
    list[str],
    described("The workers that a worker token may speak for. An empty list means all.", ["10.0.1.0/24"], **_PATTERNS),
]
ModelPatterns = Annotated[
    list[str],
    described("The models that these workers may serve. An empty list means all.", ["vicuna-*"], **_PATTERNS),
]
RoutedName = Annotated[str, described("The name that clients send as their model.", "gpt-small", **MODEL_NAME)]
Targets = Annotated[
    dict[str, int | float],
    described(
        "The weight of each model that serves the requests. They are split by the weights. A model with weight 0 gets "
        "none. One weight at least is above 0.",
        {"qwen-7b": 90, "qwen-7b-next": 10},
        minProperties=1,
        maxProperties=MAX_TARGETS,
        propertyNames=MODEL_NAME,
        additionalProperties={"type": "integer", "minimum": 0, "maximum": MAX_WEIGHT},
        **{"not": {"additionalProperties": {"const": 0}}},
    ),
]
Fallbacks = Annotated[
    list[str],
    described(
        "The models to try when no target has a live worker, in this order.",
        ["qwen-1b"],
        maxItems=MAX_FALLBACKS,
        uniqueItems=True,
        items={"type": "string", **MODEL_NAME},
    ),
]


def check_age(field: str, age: float) -> None:
    """Raise InvalidInput unless a value is an age in seconds."""
    if not 0 <= age <= MAX_AGE:  # also rejects NaN
        raise InvalidInput(field, f"must be a number of seconds from 0 to {MAX_AGE:g}")
