"""Settings of the affinity: which requests go to the worker that got an earlier one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from controller.domain.affinity import AffinityKind
from controller.domain.errors import InvalidInput, SettingsError
from controller.domain.worker import model_name
from controller.settings.declaration import setting

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")  # of a header or of a field
_LONGEST_TTL: Final = 86_400
_MOST_KEYS: Final = 10**7


@dataclass(frozen=True, kw_only=True)
class AffinitySettings:
    """Affinity of requests that are forwarded to engines. Times are in seconds."""

    title: ClassVar = "Affinity"

    affinity: str = setting(
        "off",
        "Which requests to engines go to the worker that got an earlier one: off, session, prefix or both. Add "
        "MODEL=KIND for single models, separated by commas: prefix,embedder=off. The lottery ignores it.",
    )
    affinity_header: str = setting("X-Session-Id", "The header whose value names the session of a request.")
    affinity_fields: str = setting(
        "prompt_cache_key,user",
        "The fields of the body that name the session of a request without the header, separated by commas. The first "
        "one that the body has counts.",
    )
    affinity_ttl: float = setting(
        1800.0,
        "How long a worker is remembered after the last request, from 1 to 86400. It may be remembered for up to twice "
        "as long. All replicas need the same time.",
    )
    max_affinity_keys: int = setting(
        200_000,
        "How many sessions and beginnings of prompts are remembered, from 1000 to 10000000. Each takes about 120 bytes "
        "of Redis's memory. All replicas need the same number.",
    )

    @property
    def affinity_kinds(self) -> tuple[AffinityKind, Mapping[str, AffinityKind]]:
        """The kind for all models, and the kinds for single models. Raises SettingsError if --affinity is wrong."""
        default, by_model = "", {}
        for part in self.affinity.split(","):
            model, _, kind = part.strip().rpartition("=")
            try:
                if model:
                    model_name(model)
                if model in by_model or (default and not model):
                    raise SettingsError(f"--affinity has two values for {model or 'all models'!r}. Remove one of them.")
                if model:
                    by_model[model] = AffinityKind(kind)
                else:
                    default = AffinityKind(part.strip())
            except (ValueError, InvalidInput) as error:
                raise SettingsError(
                    "--affinity must be off, session, prefix or both, or MODEL=KIND with one of these, or several with "
                    f"commas, such as prefix,embedder=off. This part is wrong: {part.strip()!r}."
                ) from error
        return AffinityKind(default or AffinityKind.OFF), by_model

    @property
    def session_fields(self) -> tuple[str, ...]:
        """The names in --affinity-fields."""
        return tuple(name.strip() for name in self.affinity_fields.split(",") if name.strip())

    def check_affinity(self) -> None:
        """Raise SettingsError if a value is wrong."""
        _ = self.affinity_kinds
        if not _NAME.fullmatch(self.affinity_header):
            raise SettingsError(
                f"--affinity-header must be the name of a header, such as X-Session-Id, not {self.affinity_header!r}."
            )
        if not all(_NAME.fullmatch(name) for name in self.session_fields):
            raise SettingsError(
                "--affinity-fields must be names of fields with commas between them, such as prompt_cache_key,user, "
                f"not {self.affinity_fields!r}."
            )
        if not 1 <= self.affinity_ttl <= _LONGEST_TTL:
            raise SettingsError(f"--affinity-ttl must be from 1 to {_LONGEST_TTL} s, not {self.affinity_ttl}.")
        if not 1000 <= self.max_affinity_keys <= _MOST_KEYS:
            raise SettingsError(f"--max-affinity-keys must be from 1000 to {_MOST_KEYS}, not {self.max_affinity_keys}.")
