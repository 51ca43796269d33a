"""The resolution with which Redis remembers the times of dispatches to a worker.

In Lua: include/load/add_checkpoint.lua. A report does not acknowledge the requests after the first checkpoint that is
younger than the in-flight window.
"""

from typing import Final

CHECKPOINT_MS: Final = 50  # the least time between two checkpoints
MAX_CHECKPOINTS: Final = 8
MAX_IN_FLIGHT_WINDOW: Final = (MAX_CHECKPOINTS - 1) * CHECKPOINT_MS / 1000  # in seconds
