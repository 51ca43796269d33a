"""The entry of a registered engine in the list of engines. Redis keeps it until the engine is removed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from controller.domain.engine_status import EngineKind
from controller.domain.errors import InvalidInput
from controller.domain.worker import MAX_CAPACITY, MAX_MODELS, MAX_SPEED, MIN_SPEED, model_name

AUTO: Final = "auto"
MAX_KEY_LENGTH: Final = 4_096
MAX_ENGINES: Final = 10_000


class EngineSource(StrEnum):
    """The source of an entry. The entry is removed if its source does not list it any more."""

    HAND = ""  # `controller register`, and POST /register_engine
    FILE = "file"  # --workers-file
    DNS = "dns"  # --workers-dns


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """An engine that the replicas poll.

    kind: one of EngineKind. "auto" lets each replica find it out.
    names: the public name of each model, by the engine's own name. Other models of the engine are not served. If this
        is empty, all models are served under their own names.
    key: the key that the engine requires. "" for that of --upstream-tokens-file.
    speed: relative to other workers.
    capacity: how many requests it runs at once, if the operator says so. None to ask the engine.
    registered_by: name of the token of the registration. "" if it needed none.
    allowed: patterns of the models that this token allows. Empty if it allows all.
    source: one of EngineSource.
    leaving_since: when its source ceased to list it, in seconds since 1970. It drains, and is removed when it is idle.
        0 while it is listed.
    was_draining: it was draining already when it ceased to be listed, so it still drains if it is listed again.

    Raises InvalidInput if a value is not acceptable.
    """

    kind: str = AUTO
    names: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default="", repr=False)
    speed: float = 1.0
    capacity: int | None = None
    registered_by: str = ""
    allowed: tuple[str, ...] = ()
    source: str = EngineSource.HAND
    leaving_since: float = 0.0
    was_draining: bool = False

    def __post_init__(self) -> None:
        if self.kind != AUTO and self.kind not in set(EngineKind):
            raise InvalidInput("engine", f"must be one of {', '.join([AUTO, *EngineKind])}")
        if len(self.names) > MAX_MODELS:
            raise InvalidInput("models", f"has {len(self.names)} entries, but at most {MAX_MODELS} are allowed")
        for name in (*self.names, *self.names.values()):
            model_name(name)
        if len(set(self.names.values())) < len(self.names):
            raise InvalidInput("models", "gives two models the same name")
        if len(self.key) > MAX_KEY_LENGTH or not self.key.isascii() or not (self.key.isprintable()):
            raise InvalidInput(
                "api_key", f"must have at most {MAX_KEY_LENGTH} characters, which must be printable ASCII characters"
            )
        if not MIN_SPEED <= self.speed <= MAX_SPEED:  # also rejects NaN
            raise InvalidInput("speed", f"must be a number from {MIN_SPEED:g} to {MAX_SPEED:g}")
        if self.capacity is not None and not 1 <= self.capacity <= MAX_CAPACITY:
            raise InvalidInput("capacity", f"must be a whole number from 1 to {MAX_CAPACITY}, or be left out")
        if type(self.leaving_since) not in (int, float):
            raise InvalidInput("leaving_since", "must be a number of seconds")

    def public_names(self, models: Iterable[str]) -> dict[str, str]:
        """Return those of an engine's models that are served: the public name by the engine's own name."""
        names = {own: self.names.get(own, own) for own in models if not self.names or own in self.names}
        if not self.allowed:
            return names
        return {own: name for own, name in names.items() if any(fnmatchcase(name, each) for each in self.allowed)}

    def encode(self) -> str:
        """Return the entry as Redis stores it."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> "EngineEntry":
        """Return the entry that encode() wrote, without what a later version has added. Raises InvalidInput."""
        try:
            read: dict[str, Any] = json.loads(text)
            known = {each.name: read[each.name] for each in fields(cls) if each.name in read}
            return cls(**{**known, "allowed": tuple(known.get("allowed", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput("engine", "has a form that the controller does not write") from error
