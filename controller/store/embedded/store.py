"""Supervises the server of the embedded store: starts it, repairs it and restarts it."""

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
from controller.store.embedded.server_process import ServerProcess, stop_orphan

logger = logging.getLogger("controller.store")

_CHECK_INTERVAL: Final = 0.1
_RETRY_INTERVAL: Final = 1.0
_REWRITE_TIMEOUT: Final = 5.0


class _Remedy(Enum):
    RESTART = auto()
    LOCK = auto()
    REWRITE = auto()


@dataclass(frozen=True)
class _Fault:
    """A fault of the store, with its description for the log."""

    description: str
    remedy: _Remedy


class EmbeddedStore:
    """A Redis server for one controller and all its replicas, as a context manager.

    The data directory stays locked while the store runs. The server listens only on a unix socket in that directory and
    writes every change to an append-only file. It ends with this process, even if this process is killed.

    If the server crashes, or its files are deleted, it is restarted. Damaged append-only files are moved aside, and the
    server starts without data. Raises EmbeddedStoreError if the first start fails.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = DataDirectory(data_dir)
        self.data_dir = self._directory.path
        self.socket_path = self._directory.socket
        self.url = f"unix://{quote(os.fsencode(self.socket_path))}"
        self._server: ServerProcess | None = None
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._last_logged = ""  # the last failure in the log

    def __enter__(self) -> Self:
        self._directory.acquire()
        try:
            self._server = self._start()
        except OSError as error:
            self._directory.release()
            raise EmbeddedStoreError(f"The embedded store cannot be started on {self.data_dir}: {error}.") from error
        except BaseException:
            self._directory.release()
            raise
        self._supervisor = threading.Thread(target=self._supervise, args=(self._server,), name="store", daemon=True)
        self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()
        if self._server is not None:
            self._server.stop()
        self._directory.release()

    @property
    def pid(self) -> int:
        """The process id of the server. It changes with each restart."""
        if self._server is None:
            raise EmbeddedStoreError("The embedded store was not started.")
        return self._server.pid

    def _start(self) -> ServerProcess:
        """Start a server on the directory, which must be locked. Raises EmbeddedStoreError or OSError."""
        if not stop_orphan(self.socket_path):
            raise EmbeddedStoreError(
                f"A server of an earlier controller still runs on {self.socket_path} and does not end. Kill it, then "
                "start again."
            )
        return ServerProcess(self._directory)

    def _supervise(self, server: ServerProcess) -> None:
        """Check the server and repair its faults, until the store stops.

        A file fault is repaired only if found twice in a row, because the files may be changing.
        """
        previous: _Fault | None = None
        while not self._stopping.wait(_CHECK_INTERVAL):
            fault = self._find_fault(server)
            if fault is not None and (fault == previous or server.status is not None):
                server = self._repair(fault, server)
                fault = None
            previous = fault

    def _find_fault(self, server: ServerProcess) -> _Fault | None:
        if server.status is not None:
            return _Fault(f"The embedded store exited (status {server.status})", _Remedy.RESTART)
        if loss := self._directory.loss():
            return _Fault(loss, _Remedy.RESTART if self._directory.is_replaced() else _Remedy.LOCK)
        if not server.has_socket():
            return _Fault(f"The embedded store's socket {self.socket_path} was deleted", _Remedy.RESTART)
        if not self._directory.has_data():
            return _Fault(f"The embedded store's files in {self.data_dir} were deleted or damaged", _Remedy.REWRITE)
        return None

    def _repair(self, fault: _Fault, server: ServerProcess) -> ServerProcess:
        """Repair a fault. Return the server, which is another one after a restart."""
        if fault.remedy is _Remedy.REWRITE:
            self._rewrite_data(fault, server)
            return server
        if fault.remedy is _Remedy.RESTART:
            logger.error("%s: restarting the store %s", fault.description, self._data_found())
            return self._restart(server)
        try:
            self._directory.acquire()
        except DirectoryInUse as error:
            logger.error("%s: stopping the store. %s", fault.description, error)  # noqa: TRY400 - no traceback needed
            return self._restart(server)
        except EmbeddedStoreError as error:
            self._log_failure(f"{fault.description}, and cannot be created again: {error}")
        else:
            self._last_logged = ""
            logger.warning("%s: it was created again and is locked.", fault.description)
        return server

    def _data_found(self) -> str:
        """Describe the data that the server will start with, as the end of a log line."""
        if self._directory.has_data():
            return "on the same data."
        if self._directory.has_manifest():
            return "on incomplete data."
        return "without data. The replicas restore the registry from their snapshots."

    def _restart(self, server: ServerProcess) -> ServerProcess:
        """Stop the server and start another one. Retries until a server runs or the store stops."""
        server.stop()
        while True:
            try:
                self._directory.acquire()
                self._server = server = self._start_again()
            except (EmbeddedStoreError, OSError) as error:
                self._log_failure(
                    f"The embedded store cannot be started again, retrying every {_RETRY_INTERVAL:g} s: {error}",
                    key=error.summary if isinstance(error, ServerDoesNotStart) else None,
                )
                if self._stopping.wait(_RETRY_INTERVAL):
                    return server
            else:
                self._last_logged = ""
                logger.warning("The embedded store runs again, as process %d in %s.", server.pid, self.data_dir)
                return server

    def _start_again(self) -> ServerProcess:
        """Start a server on the same data, or without data if it rejects the data. Raises as _start()."""
        try:
            return self._start()
        except ServerDoesNotStart as error:
            if not (error.exited and self._directory.has_append_only()):
                raise
        return self._start_without_damaged_data()

    def _start_without_damaged_data(self) -> ServerProcess:
        """Start a server after moving the data aside. If that fails too, the data is not the cause: move it back."""
        aside = self._directory.move_data_aside()
        try:
            server = self._start()
        except BaseException:
            self._directory.move_data_back(aside)
            raise
        logger.error(
            "The embedded store did not start on its data, which is damaged. The data was moved to %s, and the store "
            "started without data. The replicas restore the registry from their snapshots. The reason is in %s.",
            aside,
            self._directory.log,
        )
        with contextlib.suppress(OSError):
            self._directory.delete_old_damaged(aside)
        return server

    def _rewrite_data(self, fault: _Fault, server: ServerProcess) -> None:
        if not self._last_logged:
            logger.error("%s: writing its data to the disk again.", fault.description)
        server.start_rewrite()
        deadline = time.monotonic() + _REWRITE_TIMEOUT
        while server.status is None and not self._directory.loss() and not self._stopping.wait(_CHECK_INTERVAL):
            if self._directory.has_data():
                self._last_logged = ""
                logger.warning("The embedded store's data is on the disk again, in %s.", self.data_dir)
                return
            if time.monotonic() > deadline:
                problem = self._directory.write_problem() or f"See {self._directory.log}."
                self._log_failure(f"The embedded store cannot write its data, retrying: {problem}")
                return

    def _log_failure(self, message: str, key: str | None = None) -> None:
        """Log an error, but only once until it changes. `key` identifies it if a part of the message varies."""
        if (key or message) != self._last_logged:
            self._last_logged = key or message
            logger.error("%s", message)
