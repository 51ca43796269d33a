"""The cost of a worker, by which shortest_queue compares workers. In Lua: include/load/cost_of.lua."""

from typing import Final

# Added to the cost of a worker without a free slot, and to that of a failing one. Without the addition no cost reaches
# the next band, however slow the worker is.
FULL: Final = 1e9
FAILING: Final = 1e12
MAX_SERVING: Final = FULL - 1
MAX_FULL: Final = FAILING - 1


def cost(requests: float, speed: float, occupied: float, capacity: int | None, *, failing: bool) -> float:
    """Return the cost of a worker. The worker with the lowest cost is chosen.

    With a free slot, or without a known capacity, the cost is the number of requests per unit of speed, as in FastChat.
    Without a free slot it is how long the next request would wait, in units of the time of a request.

    occupied: the best estimate of its requests, which is compared with its capacity.
    """
    result = min(requests / speed, MAX_SERVING)
    if capacity is not None:
        missing = occupied + 1 - capacity
        if missing > 0:
            result = min(FULL + missing / (capacity * speed), MAX_FULL)
    return result + FAILING if failing else result
