"""What the Lua scripts cost inside the store: microseconds of its time, at several numbers of workers.

    python benchmarks/scripts.py [--workers 10 1000 10000]

On the embedded store; the store's own accounting (INFO commandstats) of EVALSHA, so neither the client nor the
socket counts.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry, Report, Request

BATCH = 32
CASES = {
    "dispatch_shortest_queue, alone": 1,
    f"dispatch_shortest_queue, {BATCH} in a call, each": BATCH,
    "dispatch_shortest_queue with a lease, alone": 1,
    "release": 1,
    "dispatch_lottery, alone": 1,
    f"dispatch_lottery, {BATCH} in a call, each": BATCH,
    "heartbeat, or answer to a poll": 1,
    "register, again": 1,
    "list_models": 1,
    "list_workers": 1,
    "sweep, nothing lapsed": 1,
}


def registration(i: int) -> Registration:
    return Registration(f"http://127.1.{i // 250}.{i % 250}:21002", WorkerStatus(("m",), 1 + i % 3, 0), True, False)


async def microseconds(client: Redis, calls: int, call: Callable[[int], Awaitable[object]]) -> float:
    await client.config_resetstat()
    for i in range(calls):
        await call(i)
    stats = (await client.info("commandstats"))["cmdstat_evalsha"]
    return float(stats["usec"]) / calls


async def measure(url: str, workers: int, calls: int) -> dict[str, float]:
    client = connect(url, timeout=60.0)
    await client.flushall()
    registry = Registry(client, "bench", 3600.0)
    for i in range(workers):
        await registry.register(registration(i))
    few = max(10, min(calls, 200_000 // workers))
    one, many, leased = [Request("m")], [Request("m")] * BATCH, [Request("m", 60_000)]
    leases: list[str] = []

    async def lease(_: int) -> None:
        leases.extend(each.lease for each in (await registry.dispatch_shortest_queue(leased)))

    times = [
        await microseconds(client, calls, lambda _: registry.dispatch_shortest_queue(one)),
        await microseconds(client, calls // BATCH, lambda _: registry.dispatch_shortest_queue(many)),
        await microseconds(client, calls, lease),
        await microseconds(client, calls, lambda i: registry.release([leases[i]])),
        await microseconds(client, calls, lambda _: registry.dispatch_lottery(one)),
        await microseconds(client, calls // BATCH, lambda _: registry.dispatch_lottery(many)),
        await microseconds(
            client, calls, lambda i: registry.heartbeat([Report(registration(i % workers).name, i % 7)])
        ),
        await microseconds(client, calls, lambda i: registry.register(registration(i % workers))),
        await microseconds(client, calls, lambda _: registry.list_models()),
        await microseconds(client, few, lambda _: registry.list_workers()),
        await microseconds(client, calls, lambda _: registry.sweep(0.001)),
    ]
    await client.aclose()
    return {name: time / batch for (name, batch), time in zip(CASES.items(), times, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--calls", type=int, default=5000, help="calls a figure (default: 5000)")
    arguments = parser.parse_args()
    console = Console(width=100)
    results = {}
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as directory,
        EmbeddedStore(Path(directory)) as store,
        Progress(console=console, transient=True) as progress,
    ):
        for workers in progress.track(arguments.workers, description="measuring"):
            results[workers] = asyncio.run(measure(store.url, workers, arguments.calls))
    table = Table("script", title="microseconds of the store's time", title_justify="left")
    for workers in arguments.workers:
        table.add_column(f"{workers:,} workers", justify="right")
    for case in CASES:
        table.add_row(case, *(f"{results[workers][case]:,.1f}" for workers in arguments.workers))
    console.print(table)


if __name__ == "__main__":
    main()
