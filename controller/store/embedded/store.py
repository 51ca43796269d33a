"""The embedded store: a real server as a child process, kept alive, with its data in a directory of ours."""

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from controller.domain.errors import DirectoryInUse, EmbeddedStoreError, ServerDoesNotStart
from controller.store.embedded.data_directory import DataDirectory
from controller.store.embedded.server_process import ServerProcess, end_orphan

logger = logging.getLogger("controller.store")

_LOOK_INTERVAL: Final = 0.1
_RETRY_INTERVAL: Final = 1.0
_REWRITE_TIMEOUT: Final = 5.0


class _Remedy(Enum):
    RESTART = auto()
    LOCK = auto()
    WRITE_DATA = auto()


@dataclass(frozen=True)
class _Fault:
    """Something that happened to the store, in the words of the log."""

    found: str
    remedy: _Remedy


class EmbeddedStore:
    """A Redis server for one controller and all its replicas, as a context manager.

    The data directory is locked for as long as it runs. The server listens on a unix socket in there and nowhere
    else, writes every change to an append-only file, and ends with this process, even if that is killed. When the
    server dies, or its files are deleted, it is started again. If its append-only files are damaged, they are moved
    aside and it starts without data. Raises EmbeddedStoreError when it cannot be started.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = DataDirectory(data_dir)
        self.data_dir = self._directory.path
        self.socket_path = self._directory.socket
        self.url = f"unix://{quote(os.fsencode(self.socket_path))}"
        self._server: ServerProcess | None = None
        self._stopping = threading.Event()
        self._guard: threading.Thread | None = None
        self._failure = ""  # the last one that was logged

    def __enter__(self) -> Self:
        self._directory.take()
        try:
            self._server = self._start()
        except OSError as error:
            self._directory.release()
            raise EmbeddedStoreError(f"The embedded store cannot be started on {self.data_dir}: {error}.") from error
        except BaseException:
            self._directory.release()
            raise
        self._guard = threading.Thread(target=self._keep_alive, args=(self._server,), name="store", daemon=True)
        self._guard.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._guard is not None:
            self._guard.join()
        if self._server is not None:
            self._server.end()
        self._directory.release()

    @property
    def pid(self) -> int:
        """The process id of the server; another one after it was started again."""
        if self._server is None:
            raise EmbeddedStoreError("The embedded store was not started.")
        return self._server.pid

    def _start(self) -> ServerProcess:
        """Start a server on the directory, which must be locked. Raises EmbeddedStoreError or OSError."""
        if not end_orphan(self.socket_path):
            raise EmbeddedStoreError(
                f"A server that an earlier controller left behind on {self.socket_path} does not end. End it, then "
                "start again."
            )
        return ServerProcess(self._directory)

    def _keep_alive(self, server: ServerProcess) -> None:
        """Mend what is found at fault, until we stop.

        A fault of files counts when it is seen twice: they may be in the middle of a change.
        """
        seen: _Fault | None = None
        while not self._stopping.wait(_LOOK_INTERVAL):
            fault = self._find_fault(server)
            if fault is not None and (fault == seen or server.status is not None):
                server = self._mend(fault, server)
                fault = None
            seen = fault

    def _find_fault(self, server: ServerProcess) -> _Fault | None:
        if server.status is not None:
            return _Fault(f"The embedded store died (status {server.status})", _Remedy.RESTART)
        if loss := self._directory.loss():
            return _Fault(loss, _Remedy.RESTART if self._directory.is_replaced() else _Remedy.LOCK)
        if not server.has_socket():
            return _Fault(f"The embedded store's socket {self.socket_path} was deleted", _Remedy.RESTART)
        if not self._directory.has_data():
            return _Fault(f"The embedded store's files in {self.data_dir} were deleted or damaged", _Remedy.WRITE_DATA)
        return None

    def _mend(self, fault: _Fault, server: ServerProcess) -> ServerProcess:
        """Return the server that is there afterwards."""
        if fault.remedy is _Remedy.WRITE_DATA:
            self._write_data_again(fault, server)
            return server
        if fault.remedy is _Remedy.RESTART:
            logger.error("%s: restarting the store %s", fault.found, self._on_what())
            return self._restart(server)
        try:
            self._directory.take()
        except DirectoryInUse as error:
            logger.error("%s: stopping the store. %s", fault.found, error)  # noqa: TRY400 - the message says it all
            return self._restart(server)
        except EmbeddedStoreError as error:
            self._log_failure(f"{fault.found}, and cannot be created again: {error}")
        else:
            self._failure = ""
            logger.warning("%s: it was created again and is locked.", fault.found)
        return server

    def _on_what(self) -> str:
        if self._directory.has_data():
            return "on the same data."
        if self._directory.has_manifest():
            return "on data that are incomplete."
        return "without data. The replicas restore the registry from their snapshots."

    def _restart(self, server: ServerProcess) -> ServerProcess:
        """End the server, and start another one; try again until that succeeds or we stop."""
        server.end()
        while True:
            try:
                self._directory.take()
                self._server = server = self._start_again()
            except (EmbeddedStoreError, OSError) as error:
                self._log_failure(
                    f"The embedded store cannot be started again, retrying every {_RETRY_INTERVAL:g} s: {error}",
                    key=error.summary if isinstance(error, ServerDoesNotStart) else None,
                )
                if self._stopping.wait(_RETRY_INTERVAL):
                    return server
            else:
                self._failure = ""
                logger.warning("The embedded store runs again, as process %d in %s.", server.pid, self.data_dir)
                return server

    def _start_again(self) -> ServerProcess:
        """Start a server on the same data, or without data if it refuses them. Raises as _start()."""
        try:
            return self._start()
        except ServerDoesNotStart as error:
            if not (error.exited and self._directory.has_append_only()):
                raise
        return self._start_without_damaged_data()

    def _start_without_damaged_data(self) -> ServerProcess:
        """Start a server after moving the data aside. If it fails too, the data are not the cause: move them back."""
        aside = self._directory.move_data_aside()
        try:
            server = self._start()
        except BaseException:
            self._directory.move_data_back(aside)
            raise
        logger.error(
            "The embedded store did not start on its data, which are damaged: they were moved to %s, and the store "
            "starts without data. The replicas restore the registry from their snapshots. The reason is in %s.",
            aside,
            self._directory.log,
        )
        with contextlib.suppress(OSError):
            self._directory.delete_old_damaged(aside)
        return server

    def _write_data_again(self, fault: _Fault, server: ServerProcess) -> None:
        if not self._failure:
            logger.error("%s: writing its data to the disk again.", fault.found)
        server.write_data_again()
        deadline = time.monotonic() + _REWRITE_TIMEOUT
        while server.status is None and not self._directory.loss() and not self._stopping.wait(_LOOK_INTERVAL):
            if self._directory.has_data():
                self._failure = ""
                logger.warning("The embedded store's data is on the disk again, in %s.", self.data_dir)
                return
            if time.monotonic() > deadline:
                problem = self._directory.write_problem() or f"See {self._directory.log}."
                self._log_failure(f"The embedded store cannot write its data, retrying: {problem}")
                return

    def _log_failure(self, message: str, key: str | None = None) -> None:
        """Log an error, once for as long as it stays the same. `key` identifies it if a part of the message varies."""
        if (key or message) != self._failure:
            self._failure = key or message
            logger.error("%s", message)
