"""Events: what happened in a cluster, in the order in which Redis recorded it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.domain.errors import InvalidInput

FIRST: Final = "0-0"  # precedes the id of every event

# What the events mean, by kind. The reference page shows these texts.
KINDS: Final[Mapping[str, str]] = {
    "worker_registered": "A worker registered that was not alive.",
    "worker_changed": "A live worker registered with other models, or with another token.",
    "worker_restored": "A worker is back: Redis had lost it, or it is an engine that is ready again.",
    "worker_expired": "A worker sent no heartbeat in time, or an engine was not ready. Its data were deleted now.",
    "worker_removed": "A live worker was removed.",
    "worker_draining": "A worker gets no more requests.",
    "worker_resumed": "A draining worker gets requests again.",
    "engine_unavailable": "An engine is not ready, or does not respond, because of `reason`.",
    "worker_failing": "A worker gets requests only if no other worker can serve them. reason: `request` or `polls`.",
    "worker_recovered": "A failing worker has answered, or has sent a heartbeat.",
    "models_appeared": "These models have a worker again, or for the first time.",
    "models_vanished": "The last worker of these models is gone, or drains.",
    "replica_joined": "A replica joined the cluster.",
    "replica_left": "A replica left the cluster.",
    "store_created": "Redis was empty: it is new, or it lost its data.",
    "store_recovered": "A replica uses Redis again, after `seconds` without Redis because of `reason`.",
    "parent_failing": "A parent does not accept the heartbeats of this cluster.",
    "parent_recovered": "A parent accepts the heartbeats of this cluster again.",
    "action": "An operator changed a capacity, a route of a model name or a token.",
    "refused": "A request was refused, because its token or address does not allow it.",
}

_MAX_PART: Final = 2**63  # Redis's numbers have 64 bits
_ID: Final = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    id: ids increase. Such an id is `<milliseconds since 1970>-<number>`.
    fields: more about it, by name: `worker`, `replica`, `models` (a JSON array of the first names) and `count`, `by`
        (a token and an address), `reason`, and others.
    """

    id: str
    kind: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """The time of Redis at which it was recorded, in seconds since 1970."""
        return int(self.id.partition("-")[0]) / 1000


def event_id(text: str, field_name: str) -> str:
    """Return the id of an event that a client sent in a field or header. Raises InvalidInput."""
    if not _ID.fullmatch(text) or max(map(int, text.split("-"))) >= _MAX_PART:
        raise InvalidInput(field_name, "must be the id of an event, such as 1764200000000-0")
    return text
