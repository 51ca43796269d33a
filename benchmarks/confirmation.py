"""Measure how long requests wait under our policies and FastChat's, with real processes, and simulate the same runs.

    python benchmarks/confirmation.py [--seconds 30] [--rounds 2] [--load 0.85] [--json results.json]

Each row starts four replicas of `controller serve` on one embedded store, HAProxy in front of them, and 20 workers that
sleep instead of computing. A worker has 8 slots, and 6 of the workers are twice as fast. Clients arrive as a Poisson
process. All of them run on this machine and use HTTP. The row "FastChat" has the real FastChat controller instead of
replicas, store and HAProxy, and needs the package fschat. Without HAProxy (Debian: apt install haproxy), the kernel
spreads the connections over `controller serve --replicas 4`.

Time is compressed: service times (mean 8 s, lognormal), heartbeats (45 s), polls (5 s) and --booking-delay (0.2 s) are
divided by --compression. A row of 30 s thus stands for five minutes. All rows of a round, real and simulated, have the
same arrivals, service times and first heartbeats, because the waits depend on when heartbeats arrive. A wait is the
time of the dispatch plus the time from the arrival at the worker to a slot. Requests that arrive in the first heartbeat
interval do not count. In the simulation a dispatch takes 1 to 5 ms.

In the rows "by way", clients get the address of HAProxy and send their requests there (`--by-way`). The dispatch of
such a request ends when it arrives at its worker. So it includes the way through HAProxy and a replica.

A row is marked "!" if the clients' event loop was late by more than 50 ms, or if a replica dispatched from a snapshot
because the store was slow. Then run it again on a machine with less load. The exit status is 1 if a row is marked or a
request failed.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from clients import PlannedRequest, Results, write_plan
from ports import free_port
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from simulation import Fleet, Ours, OursByWay, Policy, Simulation, Stock
from sleeping_workers import MODEL

from controller.domain.errors import EmbeddedStoreError
from controller.store.embedded.store import EmbeddedStore

REPLICAS = 4
COMPRESSION = 10.0
WORKER_PROCESSES = 4
LARGEST_LAG = 0.05
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
BENCHMARKS = Path(__file__).parent
# Debian installs it in /usr/sbin, which is not on the PATH of all users.
HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
HAPROXY_CONFIGURATION = """
global
  maxconn 4000 # with --by-way, each running request is a connection
defaults
  mode http
  timeout connect 1s
  # The longest time without data. As in deploy/: a stream of `--by-way` may be silent for up to --worker-timeout.
  timeout client 1h
  timeout server 200s
listen controller
  bind 127.0.0.1:{port}
  balance roundrobin
  option http-no-delay
  # As in deploy/: retry if a replica has just closed the idle connection.
  option redispatch 1
  retries 3
  retry-on conn-failure empty-response
  # A worker may have begun to process a forwarded request.
  http-request disable-l7-retry if {{ path_beg /worker_ }}
"""


class ProcessFailed(Exception):
    """A process did not start, or ended too early. The message has the end of its log."""


@dataclass(frozen=True)
class Row:
    """One configuration of controller, clients and workers.

    lease_share: the share of clients that use leases.
    by_way: requests pass through a replica, which holds a lease for each. The clients use none.
    """

    name: str
    stock: bool = False
    decay: bool = True
    polls: bool = True
    lease_share: float = 0.0
    reports_capacity: bool = False
    by_way: bool = False

    def fleet(self, fleet: Fleet) -> Fleet:
        """Return the fleet with the polls and leases of this row."""
        polled = self.polls and not self.stock
        return replace(fleet, poll_interval=fleet.poll_interval if polled else 0.0, lease_share=self.lease_share)

    def policy(self, fleet: Fleet) -> Policy:
        """Return the policy of the simulation for this row."""
        if self.stock:
            return Stock(fleet)
        return (OursByWay if self.by_way else Ours)(fleet, self.reports_capacity, decay=self.decay)


STOCK = Row("FastChat", stock=True)
NO_DECAY = Row("ours, no decay, no polls", decay=False, polls=False)
NO_POLLS = Row("ours, no polls", polls=False)
DEFAULTS = Row("ours, defaults")
HALF_LEASE = Row("ours, half lease", lease_share=0.5)
LEASES = Row("ours, leases", lease_share=1.0)
LEASES_AND_CAPACITY = Row("ours, leases, capacity reported", lease_share=1.0, reports_capacity=True)
BY_WAY = Row("ours, by way", by_way=True)
BY_WAY_AND_CAPACITY = Row("ours, by way, capacity reported", by_way=True, reports_capacity=True)
ROWS = [
    STOCK,
    NO_DECAY,
    NO_POLLS,
    DEFAULTS,
    HALF_LEASE,
    LEASES,
    LEASES_AND_CAPACITY,
    BY_WAY,
    BY_WAY_AND_CAPACITY,
]


@dataclass(frozen=True)
class Waits:
    """Mean and 99th percentile of the waits that count, in seconds."""

    mean: float
    p99: float

    @classmethod
    def of(cls, waits: Sequence[float], fleet: Fleet) -> Self:
        """Compute them from all waits of a run. Waits before all workers have sent a heartbeat do not count."""
        warm_up = fleet.heartbeat_interval * fleet.rate() / fleet.requests
        counted = sorted(waits[math.ceil(len(waits) * warm_up) :])
        return cls(sum(counted) / len(counted), counted[int(len(counted) * 0.99)])


@dataclass(frozen=True)
class Result:
    """The result of one run of a row. Times are in seconds."""

    name: str
    seed: int
    real: Waits
    simulated: Waits
    dispatch_time: float  # mean
    requests: int
    failed: list[str]
    degraded: int
    forwarded: int
    largest_lag: float
    cpu_share: float

    @property
    def sound(self) -> bool:
        """Return True if the clients were in time and no replica was in degraded mode."""
        return self.largest_lag <= LARGEST_LAG and not self.degraded


class Processes:
    """Child processes, each with its own log. All end with the block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, *command: str) -> "Child":
        log = self._directory / f"{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env={**os.environ, "LOGDIR": str(self._directory)},  # FastChat writes its logs there
                start_new_session=True,  # Ctrl-C must reach this process only, which then ends the others
            )
        self._started.append(process)
        return Child(process, log, command)


@dataclass(frozen=True)
class Child:
    """A child process and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    command: tuple[str, ...]

    def has_logged(self, word: str) -> bool:
        return word in self.log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                raise ProcessFailed(f"{' '.join(self.command)} did not start. The end of its log:\n{tail}")
            time.sleep(0.02)


def responds(url: str) -> bool:
    """Return True if a GET request returns 200."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def start_stock(processes: Processes) -> str:
    """Start FastChat's controller. Return its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", str(port)]
    controller = processes.start(sys.executable, *command)
    controller.wait_until(partial(responds, f"{url}/test_connection"))
    return url


def start_replicas(processes: Processes, store: str, ports: Sequence[int], *flags: str) -> list[str]:
    """Start a process of `controller serve` for each port, all on one store. Return their URLs."""
    address = ["--host", "127.0.0.1", "--redis-url", store, "--shutdown-delay", "0", "--log-level", "warning"]
    command = [sys.executable, "-m", "controller", "serve", *address, *flags]
    replicas = [processes.start(*command, "--port", str(port)) for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for replica, url in zip(replicas, urls, strict=True):
        replica.wait_until(partial(responds, f"{url}/readyz"))
    return urls


def start_ours(processes: Processes, store: str, directory: Path, row: Row, fleet: Fleet) -> str:
    """Start four replicas behind HAProxy, or one controller with four replicas without HAProxy. Return the URL."""
    balanced, *ports = (free_port() for _ in range(1 + REPLICAS))
    url = f"http://127.0.0.1:{balanced}"
    flags = controller_flags(row, fleet, url)
    if HAPROXY is None:
        start_replicas(processes, store, [balanced], "--replicas", str(REPLICAS), *flags)
        return url
    start_replicas(processes, store, ports, *flags)
    servers = "".join(f"  server replica-{port} 127.0.0.1:{port}\n" for port in ports)
    configuration = directory / "haproxy.cfg"
    configuration.write_text(HAPROXY_CONFIGURATION.format(port=balanced) + servers)
    balancer = processes.start(HAPROXY, "-db", "-f", str(configuration))
    balancer.wait_until(partial(responds, f"{url}/readyz"))
    return url


def first_heartbeats(fleet: Fleet) -> list[float]:
    """Return the time of each worker's first heartbeat, in seconds from its start."""
    rng = random.Random(fleet.seed + 2)
    return [rng.uniform(0, fleet.heartbeat_interval) for _ in range(fleet.workers)]


def start_workers(processes: Processes, controller: str, row: Row, fleet: Fleet) -> None:
    """Start all workers in a few processes, and wait until they are registered."""
    speeds, first = ([str(each) for each in values] for values in (fleet.speeds(), first_heartbeats(fleet)))
    flags = ["--slots", str(fleet.slots), "--heartbeat-interval", str(fleet.heartbeat_interval)]
    flags += ["--report-capacity"] if row.reports_capacity else []
    script = [sys.executable, str(BENCHMARKS / "sleeping_workers.py"), "--controller-address", controller]
    started = []
    for i in range(WORKER_PROCESSES):
        each = ["--speeds", *speeds[i::WORKER_PROCESSES], "--first-heartbeats", *first[i::WORKER_PROCESSES]]
        started.append(processes.start(*script, *flags, *each))
    for worker in started:
        worker.wait_until(partial(worker.has_logged, "ready"))


def controller_flags(row: Row, fleet: Fleet, url: str) -> list[str]:
    return [
        *(("--by-way", "--advertise", url) if row.by_way else ()),
        *("--booking-decay", "on" if row.decay else "off"),
        *("--booking-delay", str(fleet.booking_delay)),
        *("--poll-interval", str(fleet.poll_interval)),
    ]


def run_clients(
    processes: Processes, directory: Path, controller: str, fleet: Fleet, progress: Callable[[float], None]
) -> Results:
    """Run the clients. Pass the elapsed seconds since the last call to `progress`."""
    plan, results = directory / "plan.json", directory / "results.json"
    requests = [PlannedRequest(each.arrived, each.service, each.leased) for each in fleet.all_requests()]
    write_plan(plan, controller, requests)
    clients = processes.start(sys.executable, str(BENCHMARKS / "clients.py"), str(plan), str(results))
    last = time.monotonic()
    while clients.process.poll() is None:
        time.sleep(0.1)
        progress(time.monotonic() - last)
        last = time.monotonic()
    if clients.process.returncode:
        raise ProcessFailed(f"The clients ended too early. Their log:\n{clients.log.read_text(errors='replace')}")
    return Results(**json.loads(results.read_text()))


def simulate(row: Row, fleet: Fleet) -> Waits:
    if row.by_way:
        fleet = replace(fleet, lease_share=1.0)  # the replicas hold the leases
    return Waits.of(Simulation(fleet, row.policy(fleet), first_heartbeats(fleet)).run().waits, fleet)


def run(row: Row, fleet: Fleet, progress: Callable[[float], None] = lambda _: None) -> Result:
    """Run a row with real processes and simulate it, on a fleet with compressed times."""
    fleet = row.fleet(fleet)
    with contextlib.ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="cb-")))
        store = None if row.stock else resources.enter_context(EmbeddedStore(directory / "data"))
        processes = resources.enter_context(Processes(directory))
        if store is None:
            controller = start_stock(processes)
        else:
            controller = start_ours(processes, store.url, directory, row, fleet)
        start_workers(processes, controller, row, fleet)
        results = run_clients(processes, directory, controller, fleet, progress)
    return Result(
        name=row.name,
        seed=fleet.seed,
        real=Waits.of(results.waits, fleet),
        simulated=simulate(row, fleet),
        dispatch_time=sum(results.dispatch_times) / len(results.dispatch_times),
        requests=fleet.requests,
        failed=results.failed,
        degraded=results.degraded,
        forwarded=results.forwarded,
        largest_lag=results.largest_lag,
        cpu_share=results.cpu_share,
    )


def compressed_fleet(load: float, seconds: float, compression: float, seed: int) -> Fleet:
    """Return a fleet of 20 workers, 6 of them fast, with enough requests for `seconds` of compressed time."""
    fleet = Fleet(
        workers=20,
        fast_share=0.3,
        load=load,
        service_mean=Fleet.service_mean / compression,
        heartbeat_interval=Fleet.heartbeat_interval / compression,
        poll_interval=Fleet.poll_interval / compression,
        booking_delay=Fleet.booking_delay / compression,
        delay=(0.001, 0.005),  # time of a dispatch on loopback, for the simulation
        forward_delay=(0.001, 0.005),
        report_delay=(0.0001, 0.005),
        seed=seed,
    )
    return replace(fleet, requests=round(seconds * fleet.rate()))


async def burst(requests: int = 256, workers: int = 4) -> list[int]:
    """Send a burst of dispatches to four replicas at the same time. Return how many each of the equal workers gets."""
    with contextlib.ExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="cb-")))
        store = resources.enter_context(EmbeddedStore(directory / "data"))
        processes = resources.enter_context(Processes(directory))
        replicas = start_replicas(processes, store.url, [free_port() for _ in range(REPLICAS)], "--poll-interval", "0")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), raise_for_status=True) as http:

            async def dispatch(number: int) -> str:
                url = f"{replicas[number % REPLICAS]}/get_worker_address"
                async with http.post(url, json={"model": MODEL}) as response:
                    return str((await response.json())["address"])

            for i in range(workers):
                status = {"model_names": [MODEL], "speed": 1, "queue_length": 0}
                body = {
                    "worker_name": f"http://127.0.0.1:1/worker-{i}",
                    "check_heart_beat": False,
                    "worker_status": status,
                }
                await (await http.post(f"{replicas[0]}/register_worker", json=body)).read()
            chosen = Counter(await asyncio.gather(*(dispatch(number) for number in range(requests))))
    return [chosen[f"http://127.0.0.1:1/worker-{i}"] for i in range(workers)]


def measure(arguments: argparse.Namespace, console: Console) -> list[Result]:
    rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    results = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(rows) * arguments.rounds * arguments.seconds)
        for number in range(arguments.rounds):
            fleet = compressed_fleet(arguments.load, arguments.seconds, arguments.compression, seed=number)
            for done, row in enumerate(rows, start=number * len(rows) + 1):
                progress.update(task, description=f"round {number + 1}, {row.name}")
                results.append(run(row, fleet, lambda more: progress.advance(task, more)))
                progress.update(task, completed=done * arguments.seconds)
    return results


def cell(waits: Iterator[Waits]) -> str:
    """Return the mean and the 99th percentile in milliseconds, each averaged over several runs."""
    each = list(waits)
    mean, p99 = (1000 * sum(getattr(one, name) for one in each) / len(each) for name in ("mean", "p99"))
    return f"{mean:,.0f} / {p99:,.0f}"


def show(results: Sequence[Result], arguments: argparse.Namespace, console: Console) -> None:
    balancer = "HAProxy" if HAPROXY else "no HAProxy: the kernel balances"
    title = (
        f"milliseconds of waiting, mean / p99, load {arguments.load:g}, {arguments.rounds} x {arguments.seconds:g} s, "
        f"time compressed {arguments.compression:g} x\n{balancer}, {platform.machine()}, {os.cpu_count()} cores"
    )
    table = Table(title=title, title_justify="left")
    table.add_column(no_wrap=True)
    for heading in ("real", "simulated", "dispatch", "requests", "failed", "client CPU", "largest lag"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(result.name for result in results):
        runs = [result for result in results if result.name == name]
        table.add_row(
            name,
            cell(one.real for one in runs) + ("" if all(one.sound for one in runs) else " !"),
            cell(one.simulated for one in runs),
            f"{1000 * sum(one.dispatch_time for one in runs) / len(runs):.1f}",
            f"{sum(one.requests for one in runs):,}",
            str(sum(len(one.failed) for one in runs)),
            f"{100 * max(one.cpu_share for one in runs):.0f} %",
            f"{1000 * max(one.largest_lag for one in runs):.0f} ms",
        )
    console.print(table)
    for result in results:
        if not result.sound:
            console.print(
                f"! {result.name}, round {result.seed + 1}: the clients were late by up to "
                f"{1000 * result.largest_lag:.0f} ms, and {result.degraded} dispatches came from a snapshot"
            )
        for error, number in Counter(result.failed).most_common(3):
            console.print(f"{result.name}, round {result.seed + 1}: {number} x {error}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long requests arrive in each row (default: 30)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row, with different arrivals (default: 2)")
    parser.add_argument("--load", type=float, default=0.85, help="share of the capacity of all slots (default: 0.85)")
    parser.add_argument(
        "--compression", type=float, default=COMPRESSION, help="factor by which all times are shorter (default: 10)"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="run only these rows"
    )
    parser.add_argument("--json", type=Path, help="write the figures of all runs to this file too")
    arguments = parser.parse_args()
    if arguments.seconds * arguments.compression < 2 * Fleet.heartbeat_interval:
        parser.error(
            f"--seconds must be at least two heartbeat intervals, {2 * Fleet.heartbeat_interval:g} divided by "
            "--compression. The first interval does not count."
        )
    if arguments.rounds < 1 or arguments.load <= 0 or not 1 <= arguments.compression <= 100:
        parser.error("--rounds must be at least 1, --load more than 0, and --compression from 1 to 100.")
    return arguments


def main() -> None:
    arguments = parse()
    console = Console(width=120)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit normally, which ends the child processes
    try:
        spread = asyncio.run(burst())
        console.print(f"A burst of {sum(spread)} on {REPLICAS} replicas, {len(spread)} idle workers: {spread}")
        results = measure(arguments, console)
    except (ProcessFailed, EmbeddedStoreError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    show(results, arguments, console)
    if arguments.json:
        figures = {"burst": spread, "runs": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not all(result.sound and not result.failed for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
