"""JSON from the network, read as FastChat reads it. A value that we need is checked; the others may be anything.

FastChat calls `json.loads` on the bytes. It accepts more than RFC 8259 allows: half of a surrogate pair in a string,
NaN and Infinity, a byte order mark, UTF-16 and UTF-32. msgspec refuses these. A body that it refuses is read again by
`json.loads`.
"""

import json
import re
from typing import Final, Generic, TypeVar

import msgspec

from controller.domain.errors import InvalidInput
from controller.domain.worker import WorkerStatus, whole_queue_length

# `json.loads` builds an object of up to 100 bytes for each value, also for those that we do not need.
_MAX_VALUES: Final = 1_000_000
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

Fields = TypeVar("Fields", bound=msgspec.Struct)


class JsonBody(Generic[Fields]):
    """A JSON object with the given fields. Errors say which field is wrong, or else `name`, and end with `advice`."""

    __slots__ = ("_advice", "_decode", "_fields", "_name", "_raw")

    def __init__(self, fields: type[Fields], name: str, advice: str) -> None:
        self._fields = fields
        self._raw = {field.name for field in msgspec.structs.fields(fields) if field.type is msgspec.Raw}
        self._name = name
        self._advice = advice
        self._decode = msgspec.json.Decoder(fields).decode

    def read(self, body: bytes) -> Fields:
        """Return the fields of `body`. Raises InvalidInput."""
        try:
            return self._decode(body.decode())  # msgspec itself does not look at the encoding of fields that it skips
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
        """The part of a body that has our fields; those of the type Raw are JSON again, in ASCII."""
        if not isinstance(value, dict):
            return value
        needed = {name: value[name] for name in self._fields.__struct_fields__ if name in value}
        return {
            name: msgspec.Raw(json.dumps(part).encode()) if name in self._raw else part for name, part in needed.items()
        }


def _check_text(name: str, value: object) -> None:
    for text in value if isinstance(value, list) else (value,):
        if isinstance(text, str) and _SURROGATE.search(text):
            raise InvalidInput(name, "has half of a surrogate pair (\\ud800 to \\udfff) in it")


class _Status(msgspec.Struct):
    model_names: list[str]
    speed: int | float
    queue_length: int | float
    capacity: int | float | None = None


_status: Final = JsonBody(_Status, "status", "A status has model_names, speed and queue_length.")


def read_status(body: bytes) -> WorkerStatus:
    """Return the status that a worker has sent. Raises InvalidInput."""
    status = _status.read(body)
    capacity = status.capacity
    if isinstance(capacity, float):
        if not capacity.is_integer():  # nor NaN or infinite
            raise InvalidInput("capacity", "must be a whole number, or be left out")
        capacity = int(capacity)
    return WorkerStatus(tuple(status.model_names), status.speed, whole_queue_length(status.queue_length), capacity)
