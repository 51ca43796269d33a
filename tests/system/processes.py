"""The processes of system tests: controllers, and FastChat's servers and workers. All of them end with the test."""

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

from ports import free_port

from tests.support import network

STOCK_WORKER = Path(__file__).with_name("stock_worker.py")
LLAVA_WORKER = Path(__file__).with_name("llava_worker.py")
# FastChat's API server streams only with pydantic 1. `make test` installs it in this directory of its own, because
# everything else needs pydantic 2.
PYDANTIC_1 = str(Path(sys.prefix, "pydantic-1"))


def call(url: str, body: Any = None, *, method: str = "POST", timeout: float = 60.0) -> Any:
    """Send a JSON body and return the JSON of the response. Raises OSError for error statuses and lost connections."""
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
    """Return True if a controller is ready and not in degraded mode."""
    try:
        return bool(call(f"{url}/readyz", method="GET", timeout=2.0) == {"ready": True})
    except (OSError, ValueError):
        return False


class Process:
    """A child process that writes its output to a file."""

    def __init__(
        self, log: Path, *command: str, wrap: Sequence[str] = (), python: str = sys.executable, **env: str
    ) -> None:
        self.log_path = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [*wrap, python, *command],
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
        """Send SIGTERM and return the exit status.

        Kills the process and raises TimeoutExpired if it does not end in time.
        """
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
            assert self.popen.poll() is None, f"the process ended before {description}:\n{self.log}"
            assert time.monotonic() < deadline, f"timed out while waiting until {description}:\n{self.log}"
            time.sleep(0.02)


class Server(Process):
    """A child process that serves HTTP at `url`."""

    def __init__(self, url: str, log: Path, *command: str, **env: str) -> None:
        super().__init__(log, *command, **env)
        self.url = url


class ControllerProcess(Process):
    """`controller serve` on a port of its own. Its default flags make shutdowns fast and bookings exact."""

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
        defaults = [] if "--redis-url" in flags else ["--data-dir", str(data_dir)]
        if "--shutdown-delay" not in flags:
            defaults += ["--shutdown-delay", "0"]  # no load balancer polls /readyz
        if "--redis-timeout" not in flags:
            defaults += ["--redis-timeout", "2"]  # slow calls on a busy machine must not look like an outage
        if "--booking-decay" not in flags:
            # Without decay the controller counts bookings as FastChat does, so tests can expect exact numbers.
            defaults += ["--booking-decay", "off", "--booking-delay", "0"]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        log = data_dir.parent / f"{data_dir.name}.log"
        super().__init__(log, "-m", "controller", "serve", *address, *defaults, *flags, wrap=wrap, **env)

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
    """Run FastChat's worker, which sends a heartbeat every `interval` seconds."""
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
    """Run a worker that catches only RequestException around a heartbeat. It sends five heartbeats a second."""
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
    """Run a server of FastChat on a port of its own."""
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
