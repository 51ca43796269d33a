"""Settings of the limits: how long a client may take, and how much it may use."""

from dataclasses import dataclass
from typing import ClassVar, Final

from controller.domain.errors import SettingsError
from controller.settings import checks
from controller.settings.declaration import Scope, flag, setting

_LIMITS: Final = {
    "max_connections": 10**6,
    "max_forwards": 10**6,
    "max_body_memory": 10**6,
    "max_workers": 10**6,
    "max_leases": 10**8,
    "max_workers_per_token": 10**6,
    "max_leases_per_token": 10**8,
    "registration_rate": 10**6,
}


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Limits for clients and workers. Times are in seconds."""

    title: ClassVar = "Limits"

    head_timeout: float = setting(
        30.0,
        "Time limit for a client to send the head of a request. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    body_timeout: float = setting(
        120.0,
        "Time limit for a client to send the body of a request. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    send_timeout: float = setting(
        60.0,
        "Longest time for which a client may read nothing of a waiting response. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    idle_timeout: float = setting(
        75.0,
        "How long an idle connection is kept. Choose a longer time than that for which clients keep connections.",
        scope=Scope.PROCESS,
    )
    max_connections: int = setting(
        10_000,
        "Largest number of connections to each replica. Others get a 503. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    max_forwards: int = setting(
        2_000,
        "Largest number of requests that each replica forwards at once. Others get a 503. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    max_body_memory: int = setting(
        512,
        "Memory of each replica for bodies that it receives or holds for a worker, in MiB. Requests with more than 16 "
        "KiB get a 503 if this memory is used up. 0 turns the limit off.",
        scope=Scope.PROCESS,
    )
    max_workers: int = setting(
        10_000,
        "Largest number of live workers. Registrations of others get a 429. All replicas need the same number. 0 turns "
        "the limit off.",
    )
    max_leases: int = setting(
        100_000,
        "Largest number of active leases. Requests for others get a 429. All replicas need the same number. 0 turns "
        "the limit off.",
    )
    max_workers_per_token: int = setting(
        0,
        "Largest number of workers that are registered with one token. Registrations of others get a 429. 0 turns the "
        "limit off.",
    )
    max_leases_per_token: int = setting(
        0,
        "Largest number of active leases that were requested with one token. Requests for others get a 429. 0 turns "
        "the limit off.",
    )
    registration_rate: float = setting(
        200.0,
        "Registrations per second that a replica accepts from one address. Registrations above this rate are "
        "delayed, and get a 429 if the delay would exceed --register-timeout. 0 turns the limit off.",
        unit="per second",
    )

    def check_limits(self) -> None:
        """Raise SettingsError if a value is wrong."""
        checks.positive_seconds(self, "idle_timeout")
        checks.seconds(self, "head_timeout", "body_timeout", "send_timeout")
        for name, largest in _LIMITS.items():
            if not 0 <= getattr(self, name) <= largest:
                raise SettingsError(
                    f"{flag(name)} must be 0, for no limit, or at most {largest}, not {getattr(self, name)}."
                )
