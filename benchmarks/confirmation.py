"""Measure how long requests wait under our policies and FastChat's, with real processes, and simulate the same runs.

    python benchmarks/confirmation.py [--seconds 30] [--rounds 2] [--load 0.85] [--json results.json]

Each row starts four replicas of `controller serve` on one embedded store, HAProxy in front of them, and 20 workers that
sleep instead of computing. A worker has 8 slots, and 6 of the workers are twice as fast. Clients arrive as a Poisson
process. All processes run on this machine and use HTTP. The row "FastChat" has the real FastChat controller instead of
replicas, store and HAProxy, and needs the package fschat. Without HAProxy (Debian: apt install haproxy), the kernel
spreads the connections over `controller serve --replicas 4`.

Time is compressed: service times (mean 8 s, lognormal), heartbeats (45 s), polls (5 s) and --booking-delay (0.2 s) are
divided by --compression. A row of 30 s thus stands for five minutes. All rows of a round, real and simulated, have the
same arrivals, service times and first heartbeats, because the waits depend on when heartbeats arrive. A wait is the
time of the dispatch plus the time from the arrival at the worker to a slot. Requests that arrive in the first heartbeat
interval do not count. In the simulation a dispatch takes 1 to 5 ms.

In the rows "by way", clients get the address of HAProxy and send their requests there (`--by-way`). The dispatch time
of such a request ends when the request reaches its worker. It includes HAProxy and a replica.

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
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import aiohttp
from clients import PlannedRequest, Results, write_plan
from confirmation_rows import (
    BENCHMARKS,
    HAPROXY,
    REPLICAS,
    ROWS,
    Row,
    first_heartbeats,
    start_ours,
    start_replicas,
    start_stock,
    start_workers,
)
from ports import free_port
from processes import Processes, ProcessFailed
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from simulated_fleet import Fleet
from simulation import Simulation
from sleeping_workers import MODEL

from controller.domain.errors import EmbeddedStoreError
from controller.store.embedded.store import EmbeddedStore

COMPRESSION = 10.0
LARGEST_LAG = 0.05


@dataclass(frozen=True)
class Waits:
    """Mean and 99th percentile of the waits that count, in seconds."""

    mean: float
    p99: float

    @classmethod
    def of(cls, waits: Sequence[float], fleet: Fleet) -> Self:
        """Compute the figures from all waits of a run, without those of the first heartbeat interval."""
        warm_up = fleet.heartbeat_interval * fleet.rate() / fleet.requests
        counted = sorted(waits[math.ceil(len(waits) * warm_up) :])
        if not counted:  # all requests failed
            return cls(math.nan, math.nan)
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
        """Return True if the clients kept up and no replica was in degraded mode."""
        return self.largest_lag <= LARGEST_LAG and not self.degraded


def run_clients(
    processes: Processes, directory: Path, controller: str, fleet: Fleet, progress: Callable[[float], None]
) -> Results:
    """Run the clients. Meanwhile, call `progress` with the seconds since its last call."""
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
        dispatch_time=sum(results.dispatch_times) / len(results.dispatch_times) if results.dispatch_times else math.nan,
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
    parser.add_argument(
        "--seconds", type=float, default=30, help="seconds during which requests arrive in each row (default: 30)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row, with different arrivals (default: 2)")
    parser.add_argument("--load", type=float, default=0.85, help="share of the capacity of all slots (default: 0.85)")
    parser.add_argument(
        "--compression", type=float, default=COMPRESSION, help="divide all times by this factor (default: 10)"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="run only these rows"
    )
    parser.add_argument("--json", type=Path, help="write the figures of all runs to this file too")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.load <= 0 or not 1 <= arguments.compression <= 100:
        parser.error("--rounds must be at least 1, --load more than 0, and --compression from 1 to 100.")
    least = 2 * Fleet.heartbeat_interval / arguments.compression
    if arguments.seconds < least:
        parser.error(
            f"--seconds must be at least {math.ceil(100 * least) / 100:g}, two heartbeat intervals. Requests of the "
            "first one do not count."
        )
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
