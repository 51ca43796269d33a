"""The dispatch methods."""

from enum import StrEnum


class DispatchMethod(StrEnum):
    """How a worker is chosen (FastChat: `--dispatch-method`)."""

    SHORTEST_QUEUE = "shortest_queue"
    LOTTERY = "lottery"
