"""Decides which replica polls which worker. The replicas need no messages: all compute the same result."""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

_32_BITS: Final = 0xFFFFFFFF
_FACTORS: Final = 0x9E3779B1, 0x85EBCA77  # two large odd numbers


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
        if not self._salts:
            return False
        checksum = crc32(name.encode())
        return max(self._salts, key=lambda salt: _mixed(checksum ^ salt[1]))[0] == self._own


def _mixed(number: int) -> int:
    """Return a number that depends on all bits of `number`.

    Checksums alone would not do. The difference between those of two replicas is the same for many names, so one
    replica would get up to twice its fair share.
    """
    number = number * _FACTORS[0] & _32_BITS
    return (number ^ number >> 15) * _FACTORS[1] & _32_BITS
