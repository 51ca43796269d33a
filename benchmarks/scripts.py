"""Measure what the Lua scripts cost inside Redis, in microseconds, at several numbers of workers.

    python benchmarks/scripts.py [--workers 10 1000 10000] [--against ../older-checkout] [--rounds 20]

A figure is the mean time of a call in a round, by Redis's own accounting (INFO commandstats) of EVALSHA. So it includes
neither the client nor the socket. Of all rounds the least figure counts, because other load of the machine only adds to
it. With --against, each round measures the other checkouts and this one in turn, all on one embedded store.
"""

import argparse
import asyncio
import json
import os
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

    async def measure(self, cases: Sequence[str], calls: int) -> list[float]:
        """Return the mean time of a call, or of a request in a call, for each case."""
        return [await self.mean(max(2, calls // CASES[case].share), CASES[case]) for case in cases]

    async def mean(self, calls: int, case: "Case") -> float:
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
    """

    call: Callable[[Subject, int], Awaitable[object]]
    requests: int = 1
    share: int = 1


ONE, MANY = [Request("m")], [Request("m")] * BATCH
CASES = {
    "dispatch_shortest_queue": Case(lambda s, _: s.dispatch(SHORTEST_QUEUE, ONE)),
    f"dispatch_shortest_queue, {BATCH} in a call, each": Case(
        lambda s, _: s.dispatch(SHORTEST_QUEUE, MANY), BATCH, BATCH // 4
    ),
    "dispatch_shortest_queue with a lease": Case(lambda s, _: s.lease(1)),
    f"dispatch_shortest_queue with leases, {BATCH} in a call, each": Case(lambda s, _: s.lease(BATCH), BATCH, BATCH),
    "release": Case(lambda s, _: s.release()),
    f"release, {BATCH} in a call, each": Case(lambda s, _: s.release(BATCH), BATCH, BATCH),
    "dispatch_lottery": Case(lambda s, _: s.dispatch(LOTTERY, ONE)),
    f"dispatch_lottery, {BATCH} in a call, each": Case(lambda s, _: s.dispatch(LOTTERY, MANY), BATCH, BATCH // 4),
    "heartbeat": Case(Subject.heartbeat),
    "register": Case(lambda s, i: s.registry.register(registration(i % s.workers))),
    "list_models": Case(lambda s, _: s.registry.list_models()),
    "list_workers": Case(lambda s, _: s.registry.list_workers(), share=40),
    "sweep without expired workers": Case(lambda s, _: s.registry.sweep(0.001)),
}


async def serve(url: str, namespace: str, cases: Sequence[str], workers: int, calls: int) -> None:
    """Measure once for each line of the standard input."""
    client = connect(url, timeout=60.0)
    subject = Subject(client, namespace, workers)
    await subject.prepare()
    await subject.measure(cases, calls)  # so that the scripts are loaded
    print("[]", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await subject.measure(cases, calls)), flush=True)
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

    def measure(self) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> list[float]:
        assert self.process.stdout is not None
        times: list[float] = json.loads(self.process.stdout.readline())
        return times

    def close(self) -> None:
        self.process.communicate()


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
    table = Table("script", title="microseconds of Redis's time, least of the rounds", title_justify="left")
    rows: dict[str, list[str]] = {case: [] for case in arguments.cases}
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as directory,
        EmbeddedStore(Path(directory)) as store,
        Progress(console=console, transient=True) as progress,
    ):
        for workers in arguments.workers:
            checkouts = [Checkout(store.url, folder, arguments.cases, workers, arguments.calls) for folder in folders]
            rounds: list[list[list[float]]] = [[] for _ in folders]
            for number in progress.track(range(arguments.rounds), description=f"{workers:,} workers"):
                order = range(len(folders)) if number % 2 else reversed(range(len(folders)))
                for i in order:
                    rounds[i].append(checkouts[i].measure())
            for checkout in checkouts:
                checkout.close()
            least = [[min(times) for times in zip(*each, strict=True)] for each in rounds]
            for i, folder in enumerate(folders):
                table.add_column(f"{workers:,} workers, {folder.name}", justify="right")
                for row, time, first in zip(rows.values(), least[i], least[0], strict=True):
                    row.append(f"{time:,.1f}" + (f" ({100 * (time / first - 1):+.1f} %)" if i else ""))
    for case, row in rows.items():
        table.add_row(case, *row)
    console.print(table)


if __name__ == "__main__":
    main()
