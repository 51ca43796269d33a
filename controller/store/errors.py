"""Turns the errors of redis-py and of the Redis server into the errors of the controller."""

import re
from typing import Final

from redis.exceptions import ClusterCrossSlotError, DataError, RedisClusterException, RedisError, ResponseError

from controller.domain.errors import StoreError, StoreRejection, StoreUnavailable

# Errors of a client. RedisClusterException is not a subclass of RedisError. OSError covers connections and our own
# timeouts. AttributeError occurs if the pool closes a connection just before it is used. RuntimeError comes from uvloop
# if the server closed a connection before the first write.
FAILURES: Final = (RedisError, RedisClusterException, OSError, AttributeError, RuntimeError)
_PERMANENT: Final = ("INVALID", "WRONGTYPE")  # prefixes of errors for which retrying is pointless
# In a MasterNotFoundError, the client of each Sentinel, with its whole configuration in a kilobyte of text.
_CLIENT: Final = re.compile(r"<redis\.asyncio\S*Redis\(.*?host=([^,]*),port=(\d+).*?\)>\)>\)>")
_ABORTED_BY_SERVER: Final = ("can't run this command", "killed")  # in errors of scripts that have no bug


def store_error(error: Exception) -> StoreError:
    """Return the controller's error for an error of the client or the server.

    An error that is not known to be a bug counts as temporary: StoreUnavailable.
    """
    # A path in the text may contain surrogates, which cannot be encoded in UTF-8.
    text = _CLIENT.sub(r"\1:\2", str(error)).encode(errors="backslashreplace").decode()
    # If the server refuses a command of a script, the text begins with a code in capitals. redis-py removes only ERR.
    refused = text.partition(" ")[0].isupper()
    script_has_bug = "user_script" in text and not refused and not any(w in text for w in _ABORTED_BY_SERVER)
    if isinstance(error, (ClusterCrossSlotError, DataError)) or (
        type(error) is ResponseError and (text.startswith(_PERMANENT) or script_has_bug)  # not its subclasses
    ):
        return StoreRejection(
            f"Redis rejected a call: {text}. The controller has a bug, or another program writes to its keys."
        )
    reason = f"{type(error).__name__}: {text}" if text else "no reply within the timeout"
    return StoreUnavailable(f"Redis is unavailable ({reason}). Try again in a few seconds.")
