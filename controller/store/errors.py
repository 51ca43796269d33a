"""What the failures of a client of Redis, or of the server, mean to us."""

from typing import Final

from redis.exceptions import ClusterCrossSlotError, DataError, RedisClusterException, RedisError, ResponseError

from controller.domain.errors import StoreError, StoreRejection, StoreUnavailable

# What a client may raise. RedisClusterException is no RedisError; an OSError is a connection's, or our own timeout; an
# AttributeError is of a connection that the pool closed after it was taken and before it was used. uvloop raises a
# RuntimeError where the server closed a connection before something was written to it.
FAILURES: Final = (RedisError, RedisClusterException, OSError, AttributeError, RuntimeError)
# How errors begin that no waiting will mend; and what is said where a script stopped that is without fault.
_MISTAKES: Final = ("INVALID", "WRONGTYPE")
_NOT_THE_SCRIPTS_FAULT: Final = ("can't run this command", "killed")


def store_error(error: Exception) -> StoreError:
    """What an error of the client or the server means. What is not known to be a mistake may pass: wait for it."""
    text = str(error).encode(errors="backslashreplace").decode()  # a path in it may be no text, and JSON takes no other
    # What a script was refused by the server begins with a code in capitals; the client takes away a mere ERR.
    refused = text.partition(" ")[0].isupper()
    mistaken_script = "user_script" in text and not refused and not any(w in text for w in _NOT_THE_SCRIPTS_FAULT)
    if isinstance(error, (ClusterCrossSlotError, DataError)) or (
        type(error) is ResponseError and (text.startswith(_MISTAKES) or mistaken_script)  # not its subclasses
    ):
        return StoreRejection(f"The store does not accept a call: {text}.")
    reason = f"{type(error).__name__}: {text}" if text else "no answer in time"
    return StoreUnavailable(f"The store does not serve ({reason}). Nothing is lost; try again in a few seconds.")
