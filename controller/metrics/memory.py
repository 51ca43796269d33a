"""Memory that the replicas of one `serve` share, so that each of them can report the sums."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.reduction import DupFd
from typing import Any, Final, TypeAlias

CELLS: Final = 4096  # numbers of a replica
MAX_NAMES: Final = 200  # names of models for which a replica counts
_NAME_BYTES: Final = 512  # of an entry: two bytes for the length, and a name as UTF-8
_CELL_BYTES: Final = 8  # a double
_ROW_BYTES: Final = CELLS * _CELL_BYTES + MAX_NAMES * _NAME_BYTES

Cells: TypeAlias = "memoryview[float]"


class Row:
    """The memory of one replica: numbers, and a list of names to which names are only added."""

    def __init__(self, memory: memoryview) -> None:
        self.cells: Cells = memory[: CELLS * _CELL_BYTES].cast("d")
        self._names = memory[CELLS * _CELL_BYTES :]

    @classmethod
    def private(cls) -> "Row":
        """Return a row that is not shared."""
        return cls(memoryview(bytearray(_ROW_BYTES)))

    def names(self) -> Iterator[str]:
        """Yield the names."""
        for start in range(0, MAX_NAMES * _NAME_BYTES, _NAME_BYTES):
            length = int.from_bytes(self._names[start : start + 2], "little")
            if not length:
                return
            yield bytes(self._names[start + 2 : start + 2 + length]).decode()

    def add_name(self, number: int, name: str) -> bool:
        """Write a name after the first `number` ones. Return False if there is no room for it."""
        text = name.encode()
        if number >= MAX_NAMES or len(text) > _NAME_BYTES - 2:
            return False
        start = number * _NAME_BYTES
        self._names[start + 2 : start + 2 + len(text)] = text
        self._names[start : start + 2] = len(text).to_bytes(2, "little")  # last: from now on, other replicas read it
        return True


class MetricsMemory:
    """A row for each replica, in memory that they share.

    The memory is a file without a name, so it cannot be deleted. On Linux it needs no disk. It is freed when the last
    process closes it. The supervisor creates it and passes it to each replica. Raises OSError if it cannot be created.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._descriptor = _nameless_file(replicas * _ROW_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {"_replicas": self._replicas, "_descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._replicas = state["_replicas"]
        self._descriptor = state["_descriptor"].detach()

    def rows(self) -> list[Row]:
        """Return the rows of all replicas. A replica writes only to its own row."""
        memory = memoryview(mmap.mmap(self._descriptor, self._replicas * _ROW_BYTES))
        return [Row(memory[slot * _ROW_BYTES : (slot + 1) * _ROW_BYTES]) for slot in range(self._replicas)]


def _nameless_file(size: int) -> int:
    """Open a file without a name and reserve its space. Writing to a mapped page without space kills the process."""
    try:
        descriptor = os.memfd_create("controller-metrics")
    except (AttributeError, OSError):  # not Linux, or a sandbox forbids the call
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        _reserve(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    if os.write(descriptor, bytes(size)) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
