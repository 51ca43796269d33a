"""The resolution with which Redis remembers the times of dispatches to a worker.

In Lua: include/load/add_checkpoint.lua. A report does not acknowledge the requests after the first checkpoint that is
younger than the in-flight window. The report of an engine does not acknowledge the requests with a lease after the
checkpoint before that.
"""

from typing import Final

CHECKPOINT_MS: Final = 50  # the least time between two checkpoints
RECENT_CHECKPOINTS: Final = 8  # which are always kept
MAX_CHECKPOINTS: Final = 24  # then some of the older ones are deleted
MAX_IN_FLIGHT_WINDOW: Final = (RECENT_CHECKPOINTS - 1) * CHECKPOINT_MS / 1000  # in seconds
