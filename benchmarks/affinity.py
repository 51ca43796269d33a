"""Simulate engines with a prefix cache, and compare policies by the wait of requests and the tokens processed.

    python benchmarks/affinity.py                             a table of all policies and workloads
    python benchmarks/affinity.py --plots docs/images         the wait against the load, for conversations
    python benchmarks/affinity.py --cache 0                   engines without a cache: the price of the affinity
    python benchmarks/affinity.py --workers 32 --no-capacity

An engine has slots, and processes the prompts of its requests one after the other, at a constant rate. It skips the
beginning of a prompt as far as its cache has it. The cache drops the blocks that were used least recently. Then the
engine generates tokens, for all of its slots at the same time. A request waits for a slot and for its prompt, so the
wait is the time to the first token.

The keys are those of controller/domain/affinity.py, of generated texts. The rules of "ours" are those of the scripts,
which tests compare with the same modules. "unbounded" is the rule of Higress: always the remembered worker.
"""

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from affinity_simulation import POLICIES, Simulation
from affinity_workloads import WORKLOADS, Parameters
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def run(job: tuple[Parameters, str]) -> tuple[float, float, float]:
    """Return the mean and the 95th percentile of the waits, and the share of the tokens that were processed."""
    parameters, name = job
    result = Simulation(parameters, POLICIES[name]).run()
    waits = result.waits[len(result.waits) // 10 :]
    return fmean(waits), quantiles(waits, n=20)[-1], result.processed / result.tokens


def run_all(jobs: Sequence[tuple[Parameters, str]], console: Console) -> list[tuple[float, float, float]]:
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
        Progress(console=console, transient=True) as progress,
    ):
        return list(progress.track(pool.map(run, jobs), total=len(jobs)))


def mean_of(runs: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    wait, slow, processed = (fmean(values) for values in zip(*runs, strict=True))
    return wait, slow, processed


def plot(folder: Path, parameters: Parameters, rows: Sequence[str], seeds: int, console: Console) -> None:
    from dispatch_plots import draw  # imported here, because only plots need matplotlib

    loads = (0.5, 0.7, 0.9, 1.1, 1.3)
    jobs = [
        (replace(parameters, workload="conversations", load=load, seed=seed), row)
        for row in rows
        for load in loads
        for seed in range(seeds)
    ]
    runs = run_all(jobs, console)
    means: dict[str, dict[float, float]] = {row: {} for row in rows}
    for i, (row, load) in enumerate(itertools.product(rows, loads)):
        means[row][load] = mean_of(runs[i * seeds : (i + 1) * seeds])[0]
    label = "load, as a share of what the engines could process without a cache"
    draw(folder / "wait-by-affinity.svg", label, False, means, "mean time to the first token, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(POLICIES), default=list(POLICIES), metavar="ROW")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--no-capacity", action="store_true", help="the engines do not report their slots")
    for name in ("load", "workers", "slots", "cache", "requests"):
        default: Any = getattr(Parameters, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument("--plots", type=Path, help="folder for a plot instead of the table")
    arguments = parser.parse_args()
    parameters = Parameters(
        load=arguments.load,
        workers=arguments.workers,
        slots=arguments.slots,
        cache=arguments.cache,
        requests=arguments.requests,
        reports_capacity=not arguments.no_capacity,
    )
    console = Console(width=140)
    if arguments.plots:
        plot(arguments.plots, parameters, arguments.rows, arguments.seeds, console)
        return
    cells = list(itertools.product(arguments.workloads, arguments.rows))
    jobs = [
        (replace(parameters, workload=workload, seed=seed), row)
        for workload, row in cells
        for seed in range(arguments.seeds)
    ]
    runs = run_all(jobs, console)
    table = Table("policy", title="mean and 95th percentile of the time to the first token in s, tokens processed")
    results = {cell: mean_of(runs[i * arguments.seeds : (i + 1) * arguments.seeds]) for i, cell in enumerate(cells)}
    for workload in arguments.workloads:
        table.add_column(workload, justify="right")
    for row in arguments.rows:
        texts = (results[workload, row] for workload in arguments.workloads)
        table.add_row(row, *(f"{wait:.2f}  {slow:.2f}  {100 * processed:.0f} %" for wait, slow, processed in texts))
    console.print(table)


if __name__ == "__main__":
    main()
