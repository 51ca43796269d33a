"""Decides which replica polls which worker. The replicas need no messages: all compute the same result."""

from collections.abc import Sequence
from zlib import crc32


class Share:
    """The part of the workers that one replica polls.

    Each worker belongs to the replica for which it draws the highest number (rendezvous hashing: Thaler and
    Ravishankar, 1998). A replica that joins or leaves moves only its own share.

    own: id of this replica.
    replicas: ids of all live replicas. Nothing belongs to a replica if this is empty.
    """

    def __init__(self, own: str, replicas: Sequence[str]) -> None:
        self._own = own
        self._salts = [(replica, crc32(replica.encode())) for replica in replicas]

    def has(self, name: str) -> bool:
        """Return True if a worker belongs to this replica."""
        salts = self._salts
        return bool(salts) and max(salts, key=lambda salt: crc32(name.encode(), salt[1]))[0] == self._own
