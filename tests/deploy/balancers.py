"""The load balancers of deploy/ as real processes on loopback, with three replicas and a load."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from ports import free_port

from tests.deploy.compose import ROOT
from tests.support.waiting import wait_for_each, wait_until
from tests.system.processes import ControllerProcess, listens, serves

DEPLOY = ROOT / "deploy"
INVENTED = "http://127.0.0.2:9"  # the worker of the registrations and heartbeats, where no process listens


@dataclass(frozen=True)
class Balancer:
    """A load balancer, with its program and its files in deploy/.

    retries: it retries a POST to the controller's own routes on another replica if the first replica dies.
    polls_readiness: it polls /readyz of each replica.
    """

    name: str
    program: str
    files: tuple[Path, ...]
    retries: bool = True
    polls_readiness: bool = True

    def write(self, directory: Path, port: int, replicas: list[int]) -> Path:
        """Copy the files to `directory` with other addresses. Return the path of the first file."""
        for file in self.files:
            text = file.read_text()
            for number, replica in enumerate(replicas, 1):
                text = text.replace(f"10.0.0.{number}:21001", f"127.0.0.1:{replica}")
            text = re.sub(r"(listen|bind) :?21001", rf"\1 127.0.0.1:{port}", text)
            text = text.replace("\n:21001 {", f"\nhttp://127.0.0.1:{port} {{")
            text = text.replace("localhost:2019", f"127.0.0.1:{free_port()}")
            assert "21001" not in text.replace("on port 21001", "")
            (directory / file.name).write_text(text)
        return directory / self.files[0].name

    def command(self, directory: Path, config: Path) -> list[str]:
        """Return the command that runs the balancer in the foreground, with its temporary files in `directory`."""
        if self.name == "nginx":
            user = " user root;" if os.getuid() == 0 else ""
            directives = f"daemon off; pid {directory}/nginx.pid;{user}"
            return [self.program, "-p", str(directory), "-e", "stderr", "-c", str(config), "-g", directives]
        if self.name == "haproxy":
            return [self.program, "-f", str(config)]
        return [self.program, "run", "--adapter", "caddyfile", "--config", str(config)]


def _version(program: str) -> tuple[int, ...]:
    output = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", output)
    assert match, output
    return tuple(map(int, match.groups()))


def installed() -> list[Balancer]:
    """Return the installed load balancers. Caddy may be installed in an old and in a current version."""
    found = []
    if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        found.append(Balancer("nginx", nginx, (DEPLOY / "nginx/nginx.conf",), polls_readiness=False))
    if haproxy := shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"):
        found.append(Balancer("haproxy", haproxy, (DEPLOY / "haproxy/fixed-addresses.cfg",)))
    folders = dict.fromkeys([str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)])
    caddies = {_version(program): program for folder in folders if (program := shutil.which("caddy", path=folder))}
    current = [version for version in caddies if version >= (2, 11, 2)]
    old = [version for version in caddies if version < (2, 11, 2)]
    caddyfile, retry = DEPLOY / "caddy/Caddyfile", DEPLOY / "caddy/retry.caddy"
    if current:
        found.append(Balancer("caddy", caddies[max(current)], (caddyfile, retry)))
    if old:
        found.append(Balancer("caddy-old", caddies[max(old)], (caddyfile,), retries=False))
    return found


@contextlib.contextmanager
def running(balancer: Balancer, directory: Path, replicas: list[int]) -> Iterator[str]:
    """Run the balancer in front of the replicas on these ports. Yield its URL."""
    directory = directory / balancer.name
    directory.mkdir(exist_ok=True)
    port = free_port()
    config = balancer.write(directory, port, replicas)
    homes = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"), str(directory))
    env = {**os.environ, **homes}
    log = directory / f"{balancer.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            balancer.command(directory, config), stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=env
        )
    try:
        while not listens(port):
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Replicas:
    """Three replicas on one store. Each replica keeps its port when it is restarted."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self._directory = directory
        self._flags = flags
        self.processes = [self._start(number, free_port()) for number in range(3)]

    def _start(self, number: int, port: int) -> ControllerProcess:
        # The delay gives a balancer time to see that /readyz returns 503.
        flags = (*self._flags, "--shutdown-delay", "2")
        return ControllerProcess(self._directory / f"replica-{number}", *flags, port=port)

    @property
    def ports(self) -> list[int]:
        return [process.port for process in self.processes]

    def send_signal(self, number: int, signal_number: signal.Signals) -> None:
        self.processes[number].popen.send_signal(signal_number)

    async def wait_for_end(self, number: int) -> int:
        """Wait until a replica has ended. Return its exit status."""
        process = self.processes[number].popen
        await wait_until(lambda: process.poll() is not None, "the replica has ended", timeout=60)
        return process.returncode

    async def make_ready(self) -> None:
        """Restart ended replicas, continue stopped replicas, and wait until all replicas are ready."""
        for number, process in enumerate(self.processes):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGCONT)
            else:
                self.processes[number] = self._start(number, process.port)
        await wait_for_each(self.processes, lambda process: serves(process.url), "the replica is ready")

    def replica_of(self, port: int) -> int:
        """Return the number of the replica that has a connection with this local port."""
        for number, process in enumerate(self.processes):
            if process.popen.poll() is not None:
                continue
            if any(c.laddr.port == port for c in psutil.Process(process.popen.pid).net_connections("tcp") if c.laddr):
                return number
        raise AssertionError(f"no replica has a connection from port {port}")

    def listens(self, number: int) -> bool:
        return listens(self.processes[number].port)

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.popen.send_signal(signal.SIGCONT)
            process.kill()


@dataclass
class Outcome:
    """The results of a load, by kind of request: successes, errors, and the longest duration in seconds."""

    done: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = sorted({*self.done, *self.failed})
        return ", ".join(
            f"{self.done[kind]} {kind}, {len(self.failed.get(kind, []))} failed, max {self.slowest.get(kind, 0):.1f} s"
            for kind in kinds
        )


Check = Callable[[httpx.Response], bool]

DISPATCH = {"model": "m"}
HEARTBEAT = {"worker_name": INVENTED, "queue_length": 0}
REGISTRATION = {
    "worker_name": INVENTED,
    "check_heart_beat": False,
    "worker_status": {"model_names": ["invented"], "speed": 1, "queue_length": 0},
}
FRAMES = [b"one", b"two", b"three"]


def _is_complete(response: httpx.Response) -> bool:
    return response.content == b"".join(frame + b"\0" for frame in FRAMES)


@dataclass(frozen=True)
class Kind:
    """A kind of request: its path and body, the check of its response, its timeout in seconds and its clients."""

    path: str
    body: object
    is_valid: Check
    timeout: float
    clients: int = 1


KINDS = {
    "dispatches": Kind("/get_worker_address", DISPATCH, lambda r: r.json()["address"] != "", 30.0, clients=3),
    "heartbeats": Kind("/receive_heart_beat", HEARTBEAT, lambda r: r.json()["exist"] is True, 30.0),
    "registrations": Kind("/register_worker", REGISTRATION, lambda r: r.json() is None, 120.0),
    "streams": Kind("/worker_generate_stream", DISPATCH, _is_complete, 120.0),
}


@contextlib.asynccontextmanager
async def load(url: str) -> AsyncIterator[Outcome]:
    """Send requests of every kind until the block ends. Half of the clients open a new connection for each request."""
    outcome = Outcome()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def send_requests(http: httpx.AsyncClient, name: str, kind: Kind) -> None:
        while not stop.is_set():
            began = loop.time()
            try:
                response = await http.post(url + kind.path, json=kind.body, timeout=kind.timeout)
                valid = response.status_code == 200 and kind.is_valid(response)
                problem = "" if valid else f"{response.status_code} {response.text}"
            except (httpx.HTTPError, ValueError, KeyError) as error:
                problem = f"{type(error).__name__}: {error}"
            outcome.slowest[name] = max(outcome.slowest.get(name, 0.0), loop.time() - began)
            if problem:
                outcome.failed.setdefault(name, []).append(problem)
            else:
                outcome.done[name] += 1
            await asyncio.sleep(0.02)

    kept, new = httpx.Limits(), httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=kept) as persistent, httpx.AsyncClient(limits=new) as single_use:
        kinds = [(name, kind) for name, kind in KINDS.items() for _ in range(kind.clients)]
        tasks = [
            asyncio.create_task(send_requests(http, name, kind))
            for http in (persistent, single_use)
            for name, kind in kinds
        ]
        try:
            yield outcome
        finally:
            stop.set()
            await asyncio.gather(*tasks)
