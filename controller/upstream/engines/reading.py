"""Reads one answer of an engine, and checks the values in it. The content is not trusted."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import msgspec

from controller.domain.engine_status import EngineModel
from controller.domain.errors import InvalidInput
from controller.domain.hops import MAX_HOPS, is_hop_list
from controller.domain.worker import (
    MAX_CAPACITY,
    MAX_MODEL_NAMES_LENGTH,
    MAX_MODELS,
    MAX_QUEUE_LENGTH,
    model_name,
)

_MAX_LENGTH: Final = 10**9  # tokens


class OtherShape(ValueError):
    """An answer has a form other than the engine's: the route belongs to something else, or to another version."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of an EngineStatus in one answer. None means that the answer does not say.

    problem: why the engine should get no requests. "" if the answer is no reason.
    asleep: True if the engine has freed its memory and does not wake up by itself.
    """

    models: tuple[EngineModel, ...] | None = None
    problem: str = ""
    asleep: bool | None = None
    running: int | None = None
    waiting: int | None = None
    full: bool | None = None
    kv_use: float | None = None
    capacity: int | None = None


Reader = Callable[[bytes], Reading]


def anything(_: bytes) -> Reading:
    """Read a response of which only the status counts."""
    return Reading()


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises OtherShape."""
    try:
        return msgspec.json.decode(body.decode())  # msgspec does not check the encoding of all strings
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OtherShape("is not JSON") from error


def parse_object(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object. Raises OtherShape."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise OtherShape("is not a JSON object")
    return value


def field(value: object, *names: str) -> Any:
    """Return a field of a JSON object, or of an object inside it. None if there is no such field."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def count(value: object) -> int | None:
    """Return a number of requests. None if the value is not a number, or out of bounds."""
    return _whole(value, 0, MAX_QUEUE_LENGTH)


def capacity(value: object) -> int | None:
    """Return a capacity. None if the value is not a number, or out of bounds."""
    return _whole(value, 1, MAX_CAPACITY)


def length(value: object) -> int | None:
    """Return a number of tokens. None if the value is not a number, or out of bounds."""
    return _whole(value, 1, _MAX_LENGTH)


def share(value: object) -> float | None:
    """Return a number from 0 to 1. None if the value is something else."""
    return float(value) if _is_number(value) and 0 <= value <= 1 else None


def hop_list(value: object) -> str:
    """Return a hop list. "" if the value is something else."""
    return value if isinstance(value, str) and is_hop_list(value) else ""


def _whole(value: object, least: int, most: int) -> int | None:
    return math.ceil(value) if _is_number(value) and least <= value <= most else None  # NaN is out of bounds


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def total(values: Iterable[int | None]) -> int | None:
    """Return the sum of counts. None if there is none, or if one of them is unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if known and len(known) == len(found) else None


def usable_models(models: Iterable[tuple[object, object, object]]) -> tuple[EngineModel, ...]:
    """Return the models that a worker can register, without duplicates.

    Each is given by its name, its length and its hop list.
    """
    found: dict[str, EngineModel] = {}
    size = 0
    for name, max_length, hops in models:
        if not isinstance(name, str) or name in found:
            continue
        if isinstance(hops, str) and hops.count(",") >= MAX_HOPS:  # requests for the model would be refused
            continue
        try:
            model = EngineModel(model_name(name), length(max_length), hop_list(hops))
        except InvalidInput:
            continue
        size += len(name.encode())
        if len(found) == MAX_MODELS or size > MAX_MODEL_NAMES_LENGTH:
            break
        found[name] = model
    return tuple(found.values())
