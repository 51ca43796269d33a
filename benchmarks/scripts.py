"""Measure what the Lua scripts cost inside Redis, in microseconds, at several numbers of workers.

    python benchmarks/scripts.py [--workers 10 1000 10000] [--against ../older-checkout] [--rounds 20]

Each figure is the median over the rounds of the mean time of one call, by Redis's own accounting (INFO commandstats)
of EVALSHA. So it includes neither the client nor the socket. All measurements run on one embedded store.

With --against, each round measures the other checkouts and this one in turn, so a slow minute of the machine affects
all of them alike. Each ratio to the first checkout is the median over the rounds of the ratios within a round.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.registry import Registry, Report, Request

HERE = Path(__file__).resolve()
BATCH = 32
LEASED = "n"  # the model whose requests all have a lease
CASES = {  # requests in a call
    "dispatch_shortest_queue": 1,
    f"dispatch_shortest_queue, {BATCH} in a call, each": BATCH,
    "dispatch_shortest_queue with a lease": 1,
    f"dispatch_shortest_queue with leases, {BATCH} in a call, each": BATCH,
    "release": 1,
    "dispatch_lottery": 1,
    f"dispatch_lottery, {BATCH} in a call, each": BATCH,
    "heartbeat": 1,
    "register": 1,
    "list_models": 1,
    "list_workers": 1,
    "sweep without expired workers": 1,
}


def registration(i: int, model: str = "m") -> Registration:
    name = f"http://127.{ord(model)}.{i // 250}.{i % 250}:21002"
    return Registration(name, WorkerStatus((model,), 1 + i % 3, 0), True, False)


class Subject:
    """The scripts of one checkout, in a namespace of their own."""

    def __init__(self, client: Redis, namespace: str, workers: int) -> None:
        self.client = client
        self.workers = workers
        self.registry = Registry(client, namespace, 3600.0, 60.0)
        self.leases: list[str] = []

    async def prepare(self) -> None:
        for i in range(self.workers):
            await self.registry.register(registration(i))
            await self.registry.register(registration(i, LEASED))

    async def lease(self, number: int) -> None:
        choices: list[Any] = await self.registry.dispatch_shortest_queue([Request(LEASED, 60_000)] * number)
        self.leases += [getattr(choice, "lease", choice) for choice in choices]

    async def heartbeat(self, i: int) -> None:
        await self.registry.heartbeat([Report(registration(i % self.workers).name, i % 7)])

    async def release(self) -> None:
        await self.registry.release([self.leases.pop()])

    async def measure(self, calls: int) -> list[float]:
        """Return the mean time of a call, or of a request in a call, for each of CASES."""
        registry, few = self.registry, max(2, min(calls, 20_000 // self.workers))
        one, many = [Request("m")], [Request("m")] * BATCH
        return [
            await self.mean(calls, 1, lambda _: registry.dispatch_shortest_queue(one)),
            await self.mean(calls // BATCH, BATCH, lambda _: registry.dispatch_shortest_queue(many)),
            await self.mean(calls, 1, lambda _: self.lease(1)),
            await self.mean(calls // BATCH, BATCH, lambda _: self.lease(BATCH)),
            await self.mean(len(self.leases), 1, lambda _: self.release()),
            await self.mean(calls, 1, lambda _: registry.dispatch_lottery(one)),
            await self.mean(calls // BATCH, BATCH, lambda _: registry.dispatch_lottery(many)),
            await self.mean(calls, 1, self.heartbeat),
            await self.mean(calls, 1, lambda i: registry.register(registration(i % self.workers))),
            await self.mean(few, 1, lambda _: registry.list_models()),
            await self.mean(few, 1, lambda _: registry.list_workers()),
            await self.mean(few, 1, lambda _: registry.sweep(0.001)),
        ]  # fmt: skip

    async def mean(self, calls: int, requests: int, call: Callable[[int], Awaitable[object]]) -> float:
        before = await self.used()
        for i in range(calls):
            await call(i)
        return (await self.used() - before) / calls / requests

    async def used(self) -> int:
        return int((await self.client.info("commandstats")).get("cmdstat_evalsha", {"usec": 0})["usec"])


async def serve(url: str, namespace: str, workers: int, calls: int) -> None:
    """Measure once for each line of the standard input."""
    client = connect(url, timeout=60.0)
    subject = Subject(client, namespace, workers)
    await subject.prepare()
    await subject.measure(calls)  # so that the scripts are loaded
    print("[]", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await subject.measure(calls)), flush=True)
    await client.aclose()


class Checkout:
    """A process that measures the scripts of one checkout when it is asked to."""

    def __init__(self, url: str, folder: Path, workers: int, calls: int) -> None:
        command = [sys.executable, str(HERE), "--serve", url, folder.name, "--workers", str(workers)]
        self.process = subprocess.Popen(
            [*command, "--calls", str(calls)],
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
    parser.add_argument("--rounds", type=int, default=50, help="default: 50")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="other checkouts")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(*arguments.serve, arguments.workers[0], arguments.calls))
        return
    from controller.store.embedded.store import EmbeddedStore  # elsewhere in older checkouts, which are served only

    folders = [*(folder.resolve() for folder in arguments.against), HERE.parents[1]]
    console = Console(width=140)
    table = Table("script", title="microseconds of Redis's time, median of the rounds", title_justify="left")
    rows: dict[str, list[str]] = {case: [] for case in CASES}
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as directory,
        EmbeddedStore(Path(directory)) as store,
        Progress(console=console, transient=True) as progress,
    ):
        for workers in arguments.workers:
            checkouts = [Checkout(store.url, folder, workers, arguments.calls) for folder in folders]
            rounds: list[list[list[float]]] = [[] for _ in folders]
            for number in progress.track(range(arguments.rounds), description=f"{workers:,} workers"):
                order = range(len(folders)) if number % 2 else reversed(range(len(folders)))
                for i in order:
                    rounds[i].append(checkouts[i].measure())
            for checkout in checkouts:
                checkout.close()
            medians = [[statistics.median(times) for times in zip(*each, strict=True)] for each in rounds]
            for i, folder in enumerate(folders):
                table.add_column(f"{workers:,} workers, {folder.name}", justify="right")
                for case, row in enumerate(rows.values()):
                    ratios = [times[case] / first[case] for times, first in zip(rounds[i], rounds[0], strict=True)]
                    ratio = f" ({100 * (statistics.median(ratios) - 1):+.1f} %)" if i else ""
                    row.append(f"{medians[i][case]:,.1f}{ratio}")
    for case, row in rows.items():
        table.add_row(case, *row)
    console.print(table)


if __name__ == "__main__":
    main()
