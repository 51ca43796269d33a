"""Find the longest run of each Lua script on the largest fleets: milliseconds for which Redis does nothing else.

    python benchmarks/longest_scripts.py [--workers 10000] [--rounds 5] [--fleets one each sets same own own-16]

Each case makes the calls that a replica makes, in batches of the largest size, on an embedded store. "median" and
"longest" are times on the clock by the store's own accounting (INFO commandstats) of EVALSHA, so they include neither
the client nor the socket. The SLOWLOG would log the commands of a script, too, and make it take several times as long.

Other programs on the machine can interrupt a script. So "cpu" is the longest processor time of a run in a round, and
the smallest of these over all rounds. It includes what the store needs to read the call and to send the reply, about
0.1 ms. If "longest" is far above it, other programs were the reason.

Fleets: "one" model for all workers; "each" worker has a model of its own; "sets": 20 sets of 200 models; "same": all
have the same 512 models; "own": each has a set of 512 models of its own, and one model is common to all. This fleet has
at most 500 workers, because more take very long to register. "own-16": the same with 16 models, and with all workers.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from longest_cases import GROUPS
from longest_fleets import FLEETS, Fleet, MeasuredRegistry, Subject, batches
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.store.connection import StoreClient, connect
from controller.store.embedded.store import EmbeddedStore


class Run(NamedTuple):
    """One run of a script."""

    milliseconds: float
    script: str
    case: str

    def __str__(self) -> str:
        return f"{self.milliseconds:.2f} ms, {self.script} ({self.case})"


def longest_runs(measured: MeasuredRegistry) -> tuple[Run, Run]:
    """Return the longest run on the clock, and the longest processor time as results_table() shows it."""
    clock = [Run(max(runs.times), *names) for names, runs in measured.runs.items()]
    processor = [Run(min(runs.processor.values()), *names) for names, runs in measured.runs.items()]
    return max(clock), max(processor)


def results_table(measured: MeasuredRegistry, title: str) -> Table:
    """Return a table of all cases, sorted by script. It has at most 80 columns."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("script", "case"):
        table.add_column(heading, no_wrap=True)
    for heading in ("runs", "median", "longest", "cpu"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (script, case), runs in sorted(measured.runs.items()):
        figures = median(runs.times), max(runs.times), min(runs.processor.values())
        table.add_row(script, case, str(len(runs.times)), *(f"{figure:.2f}" for figure in figures))
    return table


async def measure(client: StoreClient, fleet: Fleet, workers: int, rounds: int, progress: Progress) -> MeasuredRegistry:
    await client.flushall()
    size = min(workers, fleet.max_workers)
    subject = Subject(client, MeasuredRegistry(client), fleet, size)
    title = f"{fleet.title}, {size:,} workers"
    task = progress.add_task(f"{title}: registration", total=size + rounds * len(GROUPS))
    for some in batches(subject.names):
        await subject.register(some)
        progress.advance(task, len(some))
    progress.update(task, total=rounds * len(GROUPS), completed=0)
    for i in range(rounds):
        for group in GROUPS:
            progress.update(task, description=f"{title}: {group.__name__.replace('_', ' ')}, round {i + 1}")
            await group(subject)
            progress.advance(task)
        subject.registry.end_round()
    progress.remove_task(task)
    await subject.registry.close()
    progress.console.print(results_table(subject.registry, title))
    clock, processor = longest_runs(subject.registry)
    progress.console.print(f"longest: {clock}\nlongest by processor time: {processor}\n", soft_wrap=True)
    return subject.registry


async def measure_all(
    url: str, fleets: Iterable[Fleet], workers: int, rounds: int, progress: Progress
) -> list[MeasuredRegistry]:
    """Return a registry for each fleet, with its times."""
    client = connect(url, timeout=60.0)
    try:
        return [await measure(client, fleet, workers, rounds, progress) for fleet in fleets]
    finally:
        await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--fleets", nargs="+", choices=list(FLEETS), default=list(FLEETS))
    arguments = parser.parse_args()
    console = Console(width=80)
    with (
        tempfile.TemporaryDirectory(prefix="cb-") as directory,
        EmbeddedStore(Path(directory)) as store,
        Progress(console=console, transient=True) as progress,
    ):
        fleets = [FLEETS[fleet] for fleet in arguments.fleets]
        asyncio.run(measure_all(store.url, fleets, arguments.workers, arguments.rounds, progress))


if __name__ == "__main__":
    main()
