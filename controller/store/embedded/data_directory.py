"""The data directory of the embedded store: creates it, locks it for one controller, and checks its files."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from controller.domain.errors import DirectoryInUse, EmbeddedStoreError

_MAX_SOCKET_PATH: Final = 103  # bytes on macOS. Linux allows 107
_APPEND_ONLY: Final = "appendonlydir"
_MANIFEST: Final = "appendonly.aof.manifest"
_DAMAGED: Final = re.compile(re.escape(_APPEND_ONLY) + r"\.damaged-\d{8}-\d{6}(-\d+)?")
_MAX_DAMAGED: Final = 3  # copies of damaged files to keep
_NEEDED_SPACE: Final = 64 * 1024  # bytes: more than a server writes when it starts on an empty directory

_HINTS: Final[Mapping[int, str]] = {
    errno.ENOSPC: "Free space on its disk, or choose another --data-dir.",
    errno.EDQUOT: "Free space within the quota, or choose another --data-dir.",
}


class DataDirectory:
    """A directory that one controller at a time may use.

    The lock is on the file `lock` in the directory. The file also contains the process id of the holder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.socket = self.path / "store.sock"
        self.log = self.path / "store.log"
        self._folder: int | None = None  # open, so that its inode number cannot be reused
        self._lock: int | None = None

    def acquire(self) -> None:
        """Create the directory and lock it, even if it was deleted meanwhile. Does nothing if it is still locked.

        Raises DirectoryInUse if another controller has locked it, and EmbeddedStoreError if it cannot be used.
        """
        if len(os.fsencode(self.socket)) > _MAX_SOCKET_PATH:
            raise EmbeddedStoreError(
                f"The path of the store's socket, {self.socket}, is longer than {_MAX_SOCKET_PATH} bytes, the maximum "
                "for a socket. Choose a shorter --data-dir."
            )
        if self._lock is not None and not self.loss():
            return
        self.release()
        try:
            Path(os.path.realpath(self.path)).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self._holder()
            self.release()
            raise DirectoryInUse(
                f"The data directory {self.path} is in use by another controller (process {holder}). Stop the other "
                "controller, or choose another --data-dir for this one."
            ) from error
        except OSError as error:
            self.release()
            raise EmbeddedStoreError(
                f"The data directory {self.path} cannot be used: {error.strerror}. {_hint(error)}"
            ) from error
        with contextlib.suppress(OSError):  # the disk may be full, and the process id is only for error messages
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Unlock the directory."""
        for descriptor in (self._lock, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._folder = None

    def _holder(self) -> str:
        holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() if self._lock is not None else ""
        return holder or "unknown"

    def loss(self) -> str:
        """Return how the directory or its lock was lost since acquire(), or "" if both are still there.

        Only a missing or replaced file is a loss. Another error, such as a missing permission, must not end a running
        server.
        """
        if self._lock is None:
            return f"The data directory {self.path} is not locked"
        lock = self.path / "lock"
        if _is_same(lock, self._lock):
            return ""
        if self.is_replaced():
            return f"The data directory {self.path} was {'deleted' if _is_missing(self.path) else 'replaced'}"
        return f"The file {lock} was {'deleted' if _is_missing(lock) else 'replaced'}"

    def is_replaced(self) -> bool:
        """Return True if the directory is missing, or was replaced since acquire()."""
        return self._folder is None or not _is_same(self.path, self._folder)

    def has_data(self) -> bool:
        """Return True if the server's append-only files are complete: a valid manifest and all files that it names."""
        folder = self.path / _APPEND_ONLY
        try:
            manifest = (folder / _MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return False
        except OSError:
            return True  # see loss()
        # Each line is: file <name> seq <number> type <b, i or h>. The server rejects a manifest without such lines.
        entries = [line.split() for line in manifest.splitlines() if not line.startswith("#")]
        if any(len(entry) < 6 for entry in entries):
            return False
        files = [entry[1] for entry in entries if entry[5] != "h"]  # h (history): the server will delete the file
        return bool(files) and not any(_is_missing(folder / name) for name in files)

    def has_manifest(self) -> bool:
        """Return True if there is a manifest, even a damaged one. Without one, the server starts without data."""
        return not _is_missing(self.path / _APPEND_ONLY / _MANIFEST)

    def write_problem(self) -> str:
        """Return why the server cannot write into the directory or use its files, or "" if it can."""
        try:
            with tempfile.TemporaryFile(dir=self.path, buffering=0) as file:
                for _ in range(_NEEDED_SPACE // 4096):
                    file.write(bytes(4096))
        except OSError as error:
            return f"{error.strerror}. {_hint(error)}"
        folder = self.path / _APPEND_ONLY
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                tempfile.TemporaryFile(dir=folder).close()
                for file_path in folder.iterdir():
                    _check_access(file_path)
        except OSError as error:
            return f"{error.filename or folder}: {error.strerror}. {_hint(error)}"
        return ""

    def has_append_only(self) -> bool:
        """Return True if the path of the append-only files exists."""
        return os.path.lexists(self.path / _APPEND_ONLY)

    def move_data_aside(self) -> Path:
        """Rename the damaged append-only files and return their new path. Raises OSError."""
        stem = self.path / time.strftime(f"{_APPEND_ONLY}.damaged-%Y%m%d-%H%M%S")
        aside, number = stem, 1
        while os.path.lexists(aside):
            number += 1
            aside = stem.with_name(f"{stem.name}-{number}")
        return (self.path / _APPEND_ONLY).rename(aside)

    def move_data_back(self, aside: Path) -> None:
        """Undo move_data_aside(), if the server cannot start without data either. Raises OSError."""
        shutil.rmtree(self.path / _APPEND_ONLY, ignore_errors=True)  # the failed server may have created new files
        aside.rename(self.path / _APPEND_ONLY)

    def delete_old_damaged(self, newest: Path) -> None:
        """Delete old copies of damaged files. Keeps `newest` and the latest others, 3 copies in all."""
        others = sorted(path for path in self.path.iterdir() if _DAMAGED.fullmatch(path.name) and path != newest)
        for path in others[: 1 - _MAX_DAMAGED]:
            shutil.rmtree(path, ignore_errors=True)


def _is_same(path: Path, descriptor: int) -> bool:
    """Return True if a path leads to an open file, or if it cannot be checked."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _check_access(path: Path) -> None:
    """Raise OSError if the server has no permission to read the file and append to it.

    A missing file and a directory raise nothing, because they count as damage.
    """
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _hint(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, "Choose another --data-dir.")
