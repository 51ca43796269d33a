"""Reads JSON bodies from the network as FastChat does. Only the values that the controller needs are checked.

FastChat calls `json.loads` on the bytes. It accepts more than RFC 8259 allows: unpaired surrogates in a string, NaN and
Infinity, a byte order mark, UTF-16 and UTF-32. msgspec rejects these. `json.loads` then reads the body again.
"""

import json
import re
from typing import Annotated, Any, Final, Generic, TypeVar, get_type_hints

import msgspec

from controller.domain.errors import InvalidInput
from controller.domain.worker import (
    MAX_CAPACITY,
    MAX_MODEL_NAME_LENGTH,
    MAX_MODEL_NAMES_LENGTH,
    MAX_MODELS,
    MAX_QUEUE_LENGTH,
    MAX_SPEED,
    MIN_SPEED,
    WorkerStatus,
    whole_queue_length,
)

# `json.loads` creates an object of up to 100 bytes for each value, even for values that are not needed.
_MAX_VALUES: Final = 1_000_000
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

Fields = TypeVar("Fields", bound=msgspec.Struct)


class JsonBody(Generic[Fields]):
    """Reads JSON objects with the given fields.

    name: stands for the body in an error that concerns no single field.
    advice: ends the message of an error.
    """

    __slots__ = ("_advice", "_decode", "_fields", "_name", "_raw")

    def __init__(self, fields: type[Fields], name: str, advice: str) -> None:
        self._fields = fields
        self._raw = {field for field, kind in get_type_hints(fields).items() if kind is msgspec.Raw}
        self._name = name
        self._advice = advice
        self._decode = msgspec.json.Decoder(fields).decode

    def read(self, body: bytes) -> Fields:
        """Return the fields of `body`. Raises InvalidInput."""
        try:
            return self._decode(body.decode())  # msgspec itself does not check the encoding of fields that it skips
        except msgspec.ValidationError as error:
            raise InvalidInput(self._name, f"{error}. {self._advice}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._read_as_fastchat(body)

    def _read_as_fastchat(self, body: bytes) -> Fields:
        if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_VALUES:
            raise InvalidInput(self._name, f"has more than {_MAX_VALUES} values and is not JSON in UTF-8")
        try:
            fields = msgspec.convert(self._needed(json.loads(body)), self._fields)
        except msgspec.ValidationError as error:
            raise InvalidInput(self._name, f"{error}. {self._advice}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(self._name, f"is not JSON: {error}. Send a JSON object in UTF-8.") from error
        for name in self._fields.__struct_fields__:
            _check_text(name, getattr(fields, name))
        return fields

    def _needed(self, value: object) -> object:
        """Return only the needed fields of a body. Fields of the type Raw are encoded again, as JSON in ASCII."""
        if not isinstance(value, dict):
            return value
        needed = {name: value[name] for name in self._fields.__struct_fields__ if name in value}
        return {
            name: msgspec.Raw(json.dumps(part).encode()) if name in self._raw else part for name, part in needed.items()
        }


def _check_text(name: str, value: object) -> None:
    for text in value if isinstance(value, list) else (value,):
        if isinstance(text, str) and _SURROGATE.search(text):
            raise InvalidInput(name, "has an unpaired surrogate (\\ud800 to \\udfff) in it")


BOUNDS: Final = "x-bounds"


def described(text: str, *examples: Any, **bounds: Any) -> msgspec.Meta:
    """Return the description of a field for the API document.

    bounds: keywords of JSON Schema, which the document has in place of those of the type. Reading a body ignores them:
    the functions that parse it check its values, because their messages say what to do.
    """
    extra = {BOUNDS: bounds} if bounds else None
    return msgspec.Meta(description=text or None, examples=list(examples) or None, extra_json_schema=extra)


MODEL_NAME: Final[dict[str, Any]] = {
    "minLength": 1,
    "maxLength": MAX_MODEL_NAME_LENGTH,
    "pattern": "^[^\\x00-\\x1f\\x7f]*$",
}
ModelNames = Annotated[
    list[str],
    described(
        "The models that the worker serves.",
        ["echo"],
        maxItems=MAX_MODELS,
        items={"type": "string", **MODEL_NAME},
    ),
]
Speed = Annotated[
    int | float,
    described(
        "The speed, relative to other workers. FastChat's workers report 1. 0 is allowed without models.",
        1,
        type="number",
        minimum=0,
        maximum=MAX_SPEED,
        # Only an exclusion can say that nothing lies between 0 and the minimum.
        **{"not": {"exclusiveMinimum": 0, "exclusiveMaximum": MIN_SPEED}},
    ),
]
QueueLength = Annotated[
    int | float,
    described(
        "The number of running and waiting requests. A float is rounded up.",
        0,
        type="number",
        minimum=0,
        maximum=MAX_QUEUE_LENGTH,
    ),
]
Capacity = Annotated[
    int | float | None,
    described(
        "How many requests a worker runs at once, or `null` if that is unknown. A float must be whole.",
        8,
        type=["integer", "null"],
        minimum=1,
        maximum=MAX_CAPACITY,
    ),
]


class ReportedStatus(msgspec.Struct):
    """The status of a worker, as it reports it."""

    model_names: ModelNames
    speed: Speed
    queue_length: QueueLength
    capacity: Capacity = None


_status: Final = JsonBody(ReportedStatus, "status", "A status has model_names, speed and queue_length.")


def read_status(body: bytes) -> WorkerStatus:
    """Return the status in a worker's response. Raises InvalidInput."""
    status = _status.read(body)
    capacity = status.capacity
    if isinstance(capacity, float):
        if not capacity.is_integer():  # also rejects NaN and infinity
            raise InvalidInput("capacity", "must be a whole number, or be left out")
        capacity = int(capacity)
    length = sum(len(name.encode()) for name in status.model_names)
    if length > MAX_MODEL_NAMES_LENGTH:
        raise InvalidInput(
            "model_names", f"has {length} bytes in all, but at most {MAX_MODEL_NAMES_LENGTH} are allowed"
        )
    return WorkerStatus(tuple(status.model_names), status.speed, whole_queue_length(status.queue_length), capacity)
