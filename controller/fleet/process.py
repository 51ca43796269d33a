"""Reads facts about this process from the operating system."""

import resource
from pathlib import Path
from typing import Final

_PAGE_SIZE: Final = resource.getpagesize()


def cpu_seconds() -> float:
    """Return the processor time that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_memory() -> int | None:
    """Return the memory of this process in bytes. None where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_SIZE
    except OSError:
        return None


def open_files() -> int | None:
    """Return how many files, sockets and pipes this process has open. None where there is no /proc."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return None


def open_files_limit() -> int | None:
    """Return how many files this process may have open. None if any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
