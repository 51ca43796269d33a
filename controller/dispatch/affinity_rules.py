"""Finds the affinity of a request by the settings."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Self

import msgspec

from controller.domain.affinity import (
    Affinity,
    AffinityKind,
    prefix_keys,
    prompt_of,
    prompt_of_response,
    session_keys,
    session_of,
)
from controller.settings import Settings

_MAX_DECODED: Final = 8 * 1024 * 1024  # bytes of a body. A long conversation with some pictures has fewer
_MAX_VALUES: Final = 200_000  # values in a body. A long prompt of token ids has fewer


class AffinityRules:
    """Decides which keys the requests of each model get.

    default: for models that by_model does not name.
    header: in lower case.
    fields: names of fields of the body. The first field that is present counts.
    """

    def __init__(
        self, default: AffinityKind, by_model: Mapping[str, AffinityKind], header: str, fields: Sequence[str]
    ) -> None:
        self._default = default
        self._by_model = by_model
        self._header = header
        self._fields = fields

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the rules of the settings."""
        default, by_model = settings.affinity_kinds
        return cls(default, by_model, settings.affinity_header.lower(), settings.session_fields)

    def find_in(self, model: str, headers: Mapping[str, str], body: bytes, path: str = "") -> Affinity | None:
        """Decode the body, and return what find() does.

        A body that is not JSON or is too large to decode has no affinity, except by the header.
        """
        if self._by_model.get(model, self._default) is AffinityKind.OFF:
            return None
        fields = None
        # Millions of small values would block the process for seconds, and take many times the memory of the body.
        if len(body) <= _MAX_DECODED and sum(map(body.count, (b",", b"[", b"{"))) <= _MAX_VALUES:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                fields = msgspec.json.decode(body)
        return self.find(model, headers, fields, path)

    def find(self, model: str, headers: Mapping[str, str], body: object, path: str = "") -> Affinity | None:
        """Return the affinity of a request, or None if it has none. It never raises.

        model: the name with which the worker serves it. An alias would separate the keys of one model.
        headers: with names in lower case, or with a get() that ignores the case.
        body: as decoded from JSON. Anything but an object has no affinity, except by the header.
        path: of the request. The field `input` is a prompt only for `/v1/responses`: others embed it, for example.
        """
        kind = self._by_model.get(model, self._default)
        if kind is AffinityKind.OFF:
            return None
        fields = body if isinstance(body, dict) else {}
        keys: tuple[str, ...] = ()
        if kind is not AffinityKind.PREFIX:
            keys = session_keys(model, headers.get(self._header) or session_of(fields, self._fields))
        if kind is not AffinityKind.SESSION:
            read_prompt = prompt_of_response if path.endswith("/responses") else prompt_of
            keys += prefix_keys(model, read_prompt(fields))
        return Affinity(keys) if keys else None
