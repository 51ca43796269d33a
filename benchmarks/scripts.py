"""Measure what the Lua scripts cost inside Redis, in microseconds, at several numbers of workers.

    python benchmarks/scripts.py [--workers 10 1000 10000] [--against ../older-checkout] [--rounds 20]

A figure is the mean time of a call in a round, by Redis's own accounting (INFO commandstats) of EVALSHA. So it includes
neither the client nor the socket. A time is the median of all rounds.

With --against, each round measures each script of the other checkouts and of this one in turn, all on one embedded
store. A change is the median of the changes within the rounds, because the speed of a machine varies between rounds by
more than the scripts differ. The sign ± stands before the standard error of that median.
"""

import argparse
import asyncio
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis, RedisCluster
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.domain.dispatch import DispatchMethod
from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.registry import Registry, Report, Request

HERE = Path(__file__).resolve()
BATCH = 32
SHORTEST_QUEUE, LOTTERY = DispatchMethod.SHORTEST_QUEUE, DispatchMethod.LOTTERY
LEASED = "n"  # the model whose requests all have a lease


def registration(i: int, model: str = "m") -> Registration:
    name = f"http://127.{ord(model)}.{i // 250}.{i % 250}:21002"
    return Registration(name, WorkerStatus((model,), 1 + i % 3, 0), True, False)


class Subject:
    """The scripts of one checkout, in a namespace of their own."""

    def __init__(self, client: Redis | RedisCluster, namespace: str, workers: int) -> None:
        self.client = client
        self.workers = workers
        self.registry = Registry(client, namespace, 3600.0, 60.0)
        self.leases: list[str] = []

    async def prepare(self) -> None:
        for i in range(self.workers):
            await self.registry.register(registration(i))
            await self.registry.register(registration(i, LEASED))

    async def lease(self, number: int) -> None:
        self.leases += await self.dispatch(SHORTEST_QUEUE, [Request(LEASED, 60_000)] * number)

    async def lease_affine(self, i: int) -> None:
        """Dispatch the next turn of one of 100 conversations: 11 of its 12 keys are known."""
        keys = tuple(f"conversation-{i % 100}-{i // 100 + 12 - number}" for number in range(12))
        self.leases += await self.dispatch(SHORTEST_QUEUE, [Request(LEASED, 60_000, "", keys)])

    async def dispatch(self, method: DispatchMethod, requests: Sequence[Request]) -> list[str]:
        """Dispatch all requests, in as many calls as it takes. Return their leases."""
        leases: list[str] = []
        while len(leases) < len(requests):
            choices = await self.registry.dispatch_some(method, requests[len(leases) :])
            leases += [choice.lease for choice in choices if choice]
        return leases

    async def heartbeat(self, i: int) -> None:
        await self.registry.heartbeat([Report(registration(i % self.workers).name, i % 7)])

    async def release(self, number: int = 1) -> None:
        await self.registry.release([self.leases.pop() for _ in range(number)])

    async def measure(self, name: str, calls: int) -> float:
        """Return the mean time of a call, or of a request in a call."""
        case = CASES[name]
        calls = max(2, calls // case.share)
        while len(self.leases) < calls * case.leases:
            await self.lease(BATCH)
        before = await self.used()
        for i in range(calls):
            await case.call(self, i)
        return (await self.used() - before) / calls / case.requests

    async def used(self) -> int:
        return int((await self.client.info("commandstats")).get("cmdstat_evalsha", {"usec": 0})["usec"])


@dataclass(frozen=True)
class Case:
    """A call to measure.

    requests: number of requests in the call.
    share: a slow case makes one call for each `share` calls of the others.
    leases: number of leases that the call ends.
    """

    call: Callable[[Subject, int], Awaitable[object]]
    requests: int = 1
    share: int = 1
    leases: int = 0


ONE, MANY = [Request("m")], [Request("m")] * BATCH
CASES = {
    "dispatch_shortest_queue": Case(lambda s, _: s.dispatch(SHORTEST_QUEUE, ONE)),
    f"dispatch_shortest_queue, {BATCH} in a call, each": Case(
        lambda s, _: s.dispatch(SHORTEST_QUEUE, MANY), BATCH, BATCH // 4
    ),
    "dispatch_shortest_queue with a lease": Case(lambda s, _: s.lease(1)),
    f"dispatch_shortest_queue with leases, {BATCH} in a call, each": Case(lambda s, _: s.lease(BATCH), BATCH, BATCH),
    "dispatch_shortest_queue with a lease and an affinity": Case(lambda s, i: s.lease_affine(i)),
    "release": Case(lambda s, _: s.release(), leases=1),
    f"release, {BATCH} in a call, each": Case(lambda s, _: s.release(BATCH), BATCH, BATCH, BATCH),
    "dispatch_lottery": Case(lambda s, _: s.dispatch(LOTTERY, ONE)),
    f"dispatch_lottery, {BATCH} in a call, each": Case(lambda s, _: s.dispatch(LOTTERY, MANY), BATCH, BATCH // 4),
    "heartbeat": Case(Subject.heartbeat),
    "register": Case(lambda s, i: s.registry.register(registration(i % s.workers))),
    "list_models": Case(lambda s, _: s.registry.list_models()),
    "list_workers": Case(lambda s, _: s.registry.list_workers(), share=40),
    "sweep without expired workers": Case(lambda s, _: s.registry.sweep(0.001)),
}


async def serve(url: str, namespace: str, cases: Sequence[str], workers: int, calls: int) -> None:
    """Measure the case that each line of the standard input names."""
    client = connect(url, timeout=60.0)
    subject = Subject(client, namespace, workers)
    await subject.prepare()
    for case in cases:  # so that the scripts are loaded
        await subject.measure(case, calls)
    print(0.0, flush=True)
    while case := await asyncio.to_thread(sys.stdin.readline):
        print(await subject.measure(case.rstrip("\n"), calls), flush=True)
    await client.aclose()


class Checkout:
    """A process that measures the scripts of one checkout when it is asked to."""

    def __init__(self, url: str, folder: Path, cases: Sequence[str], workers: int, calls: int) -> None:
        command = [sys.executable, str(HERE), "--serve", url, folder.name, "--workers", str(workers)]
        self.process = subprocess.Popen(
            [*command, "--calls", str(calls), "--cases", *cases],
            env={**os.environ, "PYTHONPATH": str(folder)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.answer()

    def measure(self, case: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> float:
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def change(times: Sequence[float], first: Sequence[float]) -> str:
    """Return the median change of paired times and its standard error, in percent."""
    changes = [100 * (time / other - 1) for time, other in zip(times, first, strict=True)]
    low, median, high = statistics.quantiles(changes, n=4) if len(changes) > 1 else changes * 3
    error = 1.25 * (high - low) / 1.35 / math.sqrt(len(changes))  # of a median, for a normal distribution
    return f"{median:+.1f} ± {error:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--calls", type=int, default=160, help="calls in a round (default: 160)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=50, help="default: 50")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="other checkouts")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        url, namespace = arguments.serve
        asyncio.run(serve(url, namespace, arguments.cases, arguments.workers[0], arguments.calls))
        return
    from controller.store.embedded.store import EmbeddedStore  # elsewhere in older checkouts, which are served only

    folders = [*(folder.resolve() for folder in arguments.against), HERE.parents[1]]
    console = Console(width=140)
    table = Table("script", title="microseconds of Redis's time, median of the rounds", title_justify="left")
    rows: dict[str, list[str]] = {case: [] for case in arguments.cases}
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as directory,
        EmbeddedStore(Path(directory)) as store,
        Progress(console=console, transient=True) as progress,
    ):
        for workers in arguments.workers:
            checkouts = [Checkout(store.url, folder, arguments.cases, workers, arguments.calls) for folder in folders]
            times: list[dict[str, list[float]]] = [{case: [] for case in arguments.cases} for _ in folders]
            for number in progress.track(range(arguments.rounds), description=f"{workers:,} workers"):
                order = range(len(folders)) if number % 2 else reversed(range(len(folders)))
                for case, i in itertools.product(arguments.cases, list(order)):
                    times[i][case].append(checkouts[i].measure(case))
            for checkout in checkouts:
                checkout.close()
            for i, folder in enumerate(folders):
                table.add_column(f"{workers:,} workers, {folder.name}", justify="right")
                for case, row in rows.items():
                    text = f"{statistics.median(times[i][case]):,.1f}"
                    row.append(text + (f" ({change(times[i][case], times[0][case])})" if i else ""))
    for case, row in rows.items():
        table.add_row(case, *row)
    console.print(table)


if __name__ == "__main__":
    main()
