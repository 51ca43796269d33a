"""Real processes: our controller, FastChat's parts, and whatever else a system test starts. All end with the test."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import network

STOCK_WORKER = Path(__file__).with_name("stock_worker.py")
LLAVA_WORKER = Path(__file__).with_name("llava_worker.py")
# FastChat's API server can only stream with pydantic 1, which `make test` installs beside the one that all else needs.
PYDANTIC_1 = str(Path(sys.prefix, "pydantic-1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def call(url: str, body: Any = None, *, method: str = "POST", timeout: float = 60.0) -> Any:
    """The JSON answer to a JSON body; raises OSError unless it is a 200."""
    if url.endswith("/register_worker"):
        network.check_worker(body["worker_name"])
    data = None if method == "GET" else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise


def answers(url: str, method: str = "GET") -> bool:
    try:
        call(url, method=method, timeout=2.0)
    except (OSError, ValueError):
        return False
    return True


def serves(url: str) -> bool:
    """Whether a controller is ready, and not from a snapshot."""
    try:
        return bool(call(f"{url}/readyz", method="GET", timeout=2.0) == {"ready": True})
    except (OSError, ValueError):
        return False


class Process:
    """A child process with its output in a file."""

    def __init__(self, log: Path, *command: str, wrap: Sequence[str] = (), **env: str) -> None:
        self.log_path = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [*wrap, sys.executable, *command],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def stop(self, timeout: float = 60.0) -> int:
        """End it as an operator does; its exit status."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self.popen.returncode

    def wait_for(self, ready: Any, description: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            assert self.popen.poll() is None, f"ended before {description}:\n{self.log}"
            assert time.monotonic() < deadline, f"waited in vain until {description}:\n{self.log}"
            time.sleep(0.02)


class Server(Process):
    """A child process that serves at `url`."""

    def __init__(self, url: str, log: Path, *command: str, **env: str) -> None:
        super().__init__(log, *command, **env)
        self.url = url


class ControllerProcess(Process):
    """`controller serve` on a port of its own."""

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        port: int = 0,
        scheme: str = "http",
        wrap: Sequence[str] = (),
        **env: str,
    ) -> None:
        self.port = port or free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.data_dir = data_dir
        data_dir.parent.mkdir(exist_ok=True)
        where = [] if "--redis-url" in flags else ["--data-dir", str(data_dir)]
        if "--shutdown-delay" not in flags:
            where += ["--shutdown-delay", "0"]  # nobody looks at /readyz
        if "--redis-timeout" not in flags:
            where += ["--redis-timeout", "2"]  # a busy machine is no outage
        if "--booking-decay" not in flags:
            where += [
                "--booking-decay",
                "off",
                "--booking-delay",
                "0",
            ]  # FastChat's arithmetic: bookings can be counted
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        log = data_dir.parent / f"{data_dir.name}.log"
        super().__init__(log, "-m", "controller", "serve", *address, *where, *flags, wrap=wrap, **env)

    @property
    def store_url(self) -> str:
        return f"unix://{self.data_dir}/store.sock"

    def ready(self) -> "ControllerProcess":
        self.wait_for(lambda: serves(self.url), "the controller is ready")
        return self

    def post(self, path: str, body: Any = None, timeout: float = 60.0) -> Any:
        return call(self.url + path, body, timeout=timeout)

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = call(f"{self.url}/workers", method="GET")["workers"]
        return workers

    def names(self) -> list[str]:
        return [worker["worker_name"] for worker in self.workers()]

    def register(self, name: str, *models: str, speed: float = 1, queue_length: int = 0, check: bool = True) -> None:
        status = {"model_names": models or ("m",), "speed": speed, "queue_length": queue_length}
        body = {"worker_name": name, "check_heart_beat": check, "worker_status": status}
        assert self.post("/register_worker", body) is None

    def dispatch(self, model: str = "m") -> str:
        address: str = self.post("/get_worker_address", {"model": model})["address"]
        return address


@contextlib.contextmanager
def stock_worker(
    log_dir: Path, controller: str, *flags: str, port: int = 0, interval: int = 1, wait: bool = True
) -> Iterator[Server]:
    """FastChat's worker, with a heartbeat every `interval` seconds."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(STOCK_WORKER), "--port", str(port), "--worker-address", url, "--controller-address", controller]
    env = {"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": str(interval), "LOGDIR": str(log_dir)}
    process = Server(url, log_dir / f"worker-{port}.log", *command, *flags, **env)
    try:
        if wait:
            process.wait_for(lambda: answers(f"{url}/worker_get_status", "POST"), "the worker answers")
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def llava_worker(log_dir: Path, controller: str) -> Iterator[Server]:
    """A worker that catches only RequestException around a heartbeat; it sends five in a second."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--port", str(port), "--worker-address", url, "--controller-address", controller, "--interval", "0.2"]
    process = Server(url, log_dir / f"llava-{port}.log", str(LLAVA_WORKER), *flags)
    try:
        process.wait_for(lambda: answers(f"{url}/worker_get_status", "POST"), "the worker answers")
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def fastchat(log_dir: Path, module: str, *flags: str, **env: str) -> Iterator[Server]:
    """A server of FastChat's on a port of its own."""
    port = free_port()
    command = ["-m", f"fastchat.serve.{module}", "--host", "127.0.0.1", "--port", str(port), *flags]
    url = f"http://127.0.0.1:{port}"
    process = Server(url, log_dir / f"{module}-{port}.log", *command, LOGDIR=str(log_dir), **env)
    try:
        process.wait_for(lambda: listens(port), f"{module} listens")
        yield process
    finally:
        process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
