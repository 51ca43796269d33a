"""Tells whether a file has changed, for files that are read again when they do."""

from pathlib import Path


def file_version(path: Path) -> object:
    """Return a value that changes if a file is written or replaced, or a symbolic link to it is. Raises OSError.

    The time of the last change of its status is a part of it: some programs copy a file with its old size and time.
    """
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
