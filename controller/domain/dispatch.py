"""The dispatch methods, and a worker as they rank it."""

from enum import StrEnum
from typing import NamedTuple


class DispatchMethod(StrEnum):
    """A rule by which a worker is chosen (FastChat: `--dispatch-method`)."""

    SHORTEST_QUEUE = "shortest_queue"
    LOTTERY = "lottery"


class RankedWorker(NamedTuple):
    """A worker that the next request may go to.

    cost: as controller/domain/cost.py computes it. The worker with the lowest cost is chosen.
    requests: estimate of its running and waiting requests. The untracked part of them decays.
    leased: active leases.
    capacity: how many requests it runs at once. None if it is unknown.
    failing: True if requests or polls of it have failed since its last heartbeat.
    """

    name: str
    cost: float
    requests: float
    leased: int
    capacity: int | None
    speed: float
    failing: bool
