"""Measure what one operation costs inside the store if workers serve many models, in microseconds.

    python benchmarks/many_models.py [--workers 10 1000 10000] [--models 1 10 200 512] [--fleets same 20 own]

Fleets: "same": all workers serve the same models; "20": there are 20 sets of models; "own": every worker has a set of
its own. In all of them, the model that is asked for is served by all workers. A figure is the lowest mean of three
rounds, by the store's own accounting (INFO commandstats) of EVALSHA.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from controller.domain.dispatch import DispatchMethod
from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import StoreClient, connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry, Report, Request

ROUNDS = 3
AT_ONCE = 16
LARGEST = 600_000  # models times workers, each with a set of its own: more take very long to register
COLUMNS = ["register", "dispatch", "lease", "release", "heartbeat", "poll", "lottery"]


def name(i: int) -> str:
    return f"http://127.1.{i // 250}.{i % 250}:21002"


def models_of(fleet: str, i: int, number: int) -> tuple[str, ...]:
    sets = {"same": 0, "20": i % 20, "own": i}[fleet]
    return ("m", *(f"adapter-{sets}-{j}" for j in range(number - 1)))


async def used(client: StoreClient) -> int:
    return int((await client.info("commandstats")).get("cmdstat_evalsha", {"usec": 0})["usec"])


async def mean(client: StoreClient, calls: int, call: Callable[[int], Awaitable[object]]) -> float:
    rounds = []
    for first in range(0, ROUNDS * calls, calls):
        before = await used(client)
        for i in range(first, first + calls):
            await call(i)
        rounds.append((await used(client) - before) / calls)
    return min(rounds)


async def measure(url: str, fleet: str, workers: int, models: int, calls: int) -> list[float]:
    client = connect(url, timeout=60.0)
    await client.flushall()
    registry = Registry(client, "bench", 3600.0, 60.0)
    before = await used(client)
    for first in range(0, workers, AT_ONCE):
        await asyncio.gather(
            *(
                registry.register(Registration(name(i), WorkerStatus(models_of(fleet, i, models), 1, 0), True, False))
                for i in range(first, min(workers, first + AT_ONCE))
            )
        )
    times = [(await used(client) - before) / workers]
    leases: list[str] = []

    async def lease(_: int) -> None:
        choices = await registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, [Request("m", 600_000)])
        leases.extend(choice.lease for choice in choices if choice)

    operations: list[Callable[[int], Awaitable[object]]] = [
        lambda _: registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, [Request("m")]),
        lease,
        lambda i: registry.release([leases[i]]),
        lambda i: registry.heartbeat([Report(name(i % workers), 1)]),
        lambda i: registry.take_poll_answers([Report(name(i % workers), 1)]),
        lambda _: registry.dispatch_some(DispatchMethod.LOTTERY, [Request("m")]),
    ]
    times += [await mean(client, calls, operation) for operation in operations]
    await registry.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--models", type=int, nargs="+", default=[1, 10, 200, 512])
    parser.add_argument("--fleets", nargs="+", choices=["same", "20", "own"], default=["same", "20", "own"])
    parser.add_argument("--calls", type=int, default=200, help="calls in a round (default: 200)")
    arguments = parser.parse_args()
    console = Console(width=100)
    table = Table(
        "fleet", "workers", "models", *COLUMNS, title="microseconds of the store's time", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    with tempfile.TemporaryDirectory(prefix="cb-") as directory, EmbeddedStore(Path(directory)) as store:
        for fleet in arguments.fleets:
            for workers in arguments.workers:
                for models in arguments.models:
                    if fleet == "own" and workers * models > LARGEST:
                        continue
                    console.print(f"measuring {fleet}, {workers:,} workers, {models} models ...", style="dim")
                    times = asyncio.run(measure(store.url, fleet, workers, models, arguments.calls))
                    table.add_row(fleet, f"{workers:,}", str(models), *(f"{time:,.0f}" for time in times))
    console.print(table)


if __name__ == "__main__":
    main()
