"""Simulate how long requests wait under our policies and under others.

    python benchmarks/dispatch_quality.py                             a table of all policies at three loads
    python benchmarks/dispatch_quality.py --question deaths           a table of the requests to workers that crash
    python benchmarks/dispatch_quality.py --plots docs/images         wait against load, heartbeats and replicas
    python benchmarks/dispatch_quality.py --bursts --loads 0.7 --seeds 10 --json results.json
    python benchmarks/dispatch_quality.py --fast-share 0 --best-guess
    python benchmarks/dispatch_quality.py --rows "ours, defaults" "ours, by way"

The rows "ours" run the rules of controller/domain, and tests compare the Lua scripts with these rules. The other rows
are stock FastChat, its lottery, round robin, the power of two choices with each router's own counts, and one ideal
queue in front of all slots, which no real system has. Each wait includes the delay to the worker, 0.11 s on average.

Variants of ours: "no polls" and "leases" have no polls. "defaults" has polls and no leases. "half lease" has polls, and
a share of --lease-share of the clients use leases. "by way" has polls. No client uses a lease, but all requests pass
through a replica, which holds one. With "capacity reported", workers report their number of slots.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import Field, asdict, dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from policies import Ideal, Lottery, Ours, OursByWay, Policy, RoundRobin, Stock, TwoChoices
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from simulated_fleet import SERVICES, Fleet
from simulation import Simulation


def bare(fleet: Fleet) -> Fleet:
    return replace(fleet, poll_interval=0.0, lease_share=0.0)


def polled(fleet: Fleet) -> Fleet:
    return replace(fleet, lease_share=0.0)


def mixed(fleet: Fleet) -> Fleet:
    return fleet


def leased(fleet: Fleet) -> Fleet:
    return replace(fleet, poll_interval=0.0, lease_share=1.0)


def leased_and_polled(fleet: Fleet) -> Fleet:
    return replace(fleet, lease_share=1.0)


def best_guess(fleet: Fleet) -> Policy:
    from best_guess import BestGuess  # imported here, because only this row needs numpy

    return BestGuess(fleet)


BEST_GUESS = "best guess from heartbeats"

# Each row: its clients and polls, and its policy.
CASES: dict[str, tuple[Callable[[Fleet], Fleet], Callable[[Fleet], Policy]]] = {
    "FastChat shortest_queue": (bare, Stock),
    "FastChat lottery": (bare, Lottery),
    "round robin": (bare, RoundRobin),
    "two choices": (bare, TwoChoices),
    "ours, no decay": (bare, partial(Ours, decay=False)),
    "ours, no polls": (bare, Ours),
    "ours, no polls, capacity reported": (bare, partial(Ours, capacity_reported=True)),
    "ours, defaults": (polled, Ours),
    "ours, capacity reported": (polled, partial(Ours, capacity_reported=True)),
    "ours, half lease": (mixed, Ours),
    "ours, half lease, capacity reported": (mixed, partial(Ours, capacity_reported=True)),
    "ours, leases": (leased, Ours),
    "ours, leases, capacity reported": (leased, partial(Ours, capacity_reported=True)),
    "ours, leases, polls, capacity reported": (leased_and_polled, partial(Ours, capacity_reported=True)),
    "ours, by way": (leased_and_polled, OursByWay),
    "ours, by way, capacity reported": (leased_and_polled, partial(OursByWay, capacity_reported=True)),
    BEST_GUESS: (bare, best_guess),
    "one ideal queue": (bare, Ideal),
}
PLOTTED = (
    "FastChat shortest_queue",
    "two choices",
    "ours, no polls",
    "ours, defaults",
    "ours, by way",
    "ours, half lease, capacity reported",
    "ours, leases, capacity reported",
    "one ideal queue",
)
QUESTIONS = ("load", "heartbeats", "replicas", "deaths")
LOADS = (0.7, 0.85, 0.95)
PLOTTED_LOADS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
INTERVALS = (1.0, 5.0, 15.0, 45.0, 90.0)
REPLICAS = (1, 2, 4, 8, 16, 32)
DEATHS = 4  # workers that crash under --question deaths without --deaths
MOST_COLUMNS = 4  # with more columns, the table has no room for 99th percentiles


@dataclass(frozen=True)
class Question:
    """A parameter to vary, its values, and the rows."""

    title: str
    varied: str  # name of the field of Fleet
    values: Sequence[float]
    cases: Sequence[str]
    logarithmic: bool = False  # the axis of a plot


@dataclass(frozen=True)
class Figures:
    """The figures of one run. Times are in seconds."""

    mean: float
    p99: float
    refused: int
    lost_refused: int
    lost_inside: int


Answers = dict[str, dict[float, list[Figures]]]  # by row and value, a list with one item for each seed


def questions(arguments: argparse.Namespace) -> dict[str, Question]:
    loads = arguments.loads or (PLOTTED_LOADS if arguments.plots else LOADS)
    intervals, counts = arguments.heartbeat_intervals, arguments.replica_counts
    deaths = arguments.deaths or min(DEATHS, arguments.workers - 2)
    cases = tuple(case for case in CASES if case != BEST_GUESS or arguments.best_guess)
    plotted: Sequence[str] = PLOTTED
    if arguments.rows:
        cases = plotted = tuple(case for case in CASES if case in arguments.rows)
    return {
        "load": Question("load", "load", loads, cases),
        "heartbeats": Question("time between heartbeats, s", "heartbeat_interval", intervals, plotted, True),
        "replicas": Question("replicas, or routers", "routers", counts, plotted, True),
        "deaths": Question("workers that crash", "deaths", [deaths], cases),
    }


def simulate(case: str, fleet: Fleet) -> Figures:
    adapt, policy = CASES[case]
    fleet = adapt(fleet)
    result = Simulation(fleet, policy(fleet)).run()
    waits = result.measured()
    p99 = waits[int(len(waits) * 0.99)]
    return Figures(fmean(waits), p99, result.refused, result.lost_refused, result.lost_inside)


def answer(question: Question, fleet: Fleet, seeds: int, jobs: int, progress: Progress) -> Answers:
    def varied(value: Any, seed: int) -> Fleet:
        return replace(fleet, **{question.varied: value}, seed=seed)

    runs = [
        (case, value, varied(value, seed))
        for case in question.cases
        for value in question.values
        for seed in range(seeds)
    ]
    answers: Answers = {}
    with ExitStack() as stack:
        # Spawn processes, because a fork while the progress bar's thread runs could deadlock.
        run_all = map if jobs == 1 else stack.enter_context(ProcessPoolExecutor(jobs, get_context("spawn"))).map
        results = run_all(simulate, [case for case, _, _ in runs], [fleet for _, _, fleet in runs])
        shown = progress.track(results, total=len(runs), description=question.title)
        for (case, value, _), figures in zip(runs, shown, strict=True):
            answers.setdefault(case, {}).setdefault(value, []).append(figures)
    return answers


def spaced(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def mean_of(name: str, runs: Sequence[Figures]) -> float:
    return fmean(getattr(figures, name) for figures in runs)


def waits_table(question: Question, answers: Answers) -> Table:
    tails = len(question.values) <= MOST_COLUMNS
    table = Table(f"seconds of waiting, mean{' / p99' if tails else ''}; by {question.title}")
    for value in question.values:
        table.add_column(f"{value:g}", justify="right")
    for case, by_value in answers.items():
        cells = (
            f"{mean_of('mean', runs):.2f}" + (f" / {mean_of('p99', runs):.1f}" if tails else "")
            for runs in by_value.values()
        )
        table.add_row(case, *cells)
    return table


def deaths_table(requests: int, answers: Answers) -> Table:
    """Return a table of requests that were sent to a crashed worker or lost. Shares are of all requests."""
    table = Table()
    table.add_column("when workers crash", no_wrap=True)
    for column in ("sent to each", "of all", "refused twice", "lost inside", "wait, mean / p99"):
        table.add_column(column, justify="right")
    for case, by_value in answers.items():
        [(deaths, runs)] = by_value.items()
        refused, refused_twice, inside = (mean_of(name, runs) for name in ("refused", "lost_refused", "lost_inside"))
        table.add_row(
            case,
            f"{refused / deaths:.0f}",
            f"{refused / requests:.2%}",
            f"{refused_twice / requests:.2%}",
            f"{inside / requests:.2%}",
            f"{mean_of('mean', runs):.2f} / {mean_of('p99', runs):.1f}",
        )
    return table


def add_flag(parser: argparse._ArgumentGroup, parameter: "Field[object]") -> None:
    """Add the flag for a field of Fleet."""
    flag, text, default = f"--{parameter.name.replace('_', '-')}", parameter.metadata["help"], parameter.default
    if isinstance(default, bool):
        parser.add_argument(flag, action="store_true", help=text)
    elif isinstance(default, tuple):
        low, high = default
        text = f"{text} (default: {low:g} to {high:g})"
        parser.add_argument(flag, type=float, nargs=2, metavar=("LEAST", "MOST"), default=default, help=text)
    elif isinstance(default, str):
        parser.add_argument(flag, choices=SERVICES, default=default, help=f"{text} (default: {default})")
    elif default is None:
        parser.add_argument(flag, type=Path, metavar="FILE", help=text)
    else:
        assert isinstance(default, int | float)
        parser.add_argument(
            flag, type=type(default), metavar="N", default=default, help=f"{text} (default: {default:g})"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("the question")
    add = partial(group.add_argument, metavar="N")
    group.add_argument(
        "--question",
        nargs="+",
        choices=QUESTIONS,
        help="parameter to vary (default: load, or all but deaths with --plots)",
    )
    add("--loads", type=float, nargs="+", help=f"loads to try (default: {spaced(LOADS)}, or 0.5 to 0.95 with --plots)")
    add(
        "--heartbeat-intervals",
        type=float,
        nargs="+",
        default=INTERVALS,
        help=f"seconds between heartbeats to try (default: {spaced(INTERVALS)})",
    )
    add(
        "--replica-counts",
        type=int,
        nargs="+",
        default=REPLICAS,
        help=f"numbers of our replicas and of routers of two choices to try (default: {spaced(REPLICAS)})",
    )
    add("--at-load", type=float, default=0.85, help="load for all other questions (default: 0.85)")
    add("--seeds", type=int, default=5, help="runs for each figure, with different random numbers (default: 5)")
    add("--jobs", type=int, default=1, help="number of processes that run simulations (default: 1)")
    group.add_argument("--rows", nargs="+", metavar="ROW", choices=CASES, help="run only these rows")
    group.add_argument(
        "--best-guess",
        action="store_true",
        help="add a row for the best guess from heartbeats, by a policy that knows the workers. Slow, needs numpy",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="file for the figures of each run")
    group.add_argument("--plots", type=Path, metavar="DIR", help="directory for the plots. Needs matplotlib")
    parameters = parser.add_argument_group("the fleet (times are in seconds)")
    for parameter in fields(Fleet):
        if parameter.metadata:
            add_flag(parameters, parameter)
    arguments = parser.parse_args()
    if arguments.rows and arguments.plots:
        parser.error("--plots needs all rows: remove --rows.")
    if min(*(arguments.loads or LOADS), arguments.at_load) <= 0:
        parser.error("a load must be more than 0.")
    if arguments.workers < 3:
        parser.error("--workers must be at least 3.")
    if not 0 <= arguments.deaths <= arguments.workers - 2:
        parser.error("--deaths must be 0 or more, and at most --workers minus 2.")
    if arguments.pareto_shape <= 1:
        parser.error("--pareto-shape must be more than 1. Otherwise the service times have no mean.")
    return arguments


def fleet_of(arguments: argparse.Namespace) -> Fleet:
    values = {field.name: getattr(arguments, field.name) for field in fields(Fleet) if field.metadata}
    return Fleet(**values, load=arguments.at_load)


def main() -> None:
    arguments = parse()
    fleet, console = fleet_of(arguments), Console(width=120)
    names = arguments.question or (("load", "heartbeats", "replicas") if arguments.plots else ("load",))
    written = {}
    for name in names:
        question = questions(arguments)[name]
        with Progress(console=console, transient=True) as progress:
            answers = answer(question, fleet, arguments.seeds, arguments.jobs, progress)
        console.print(deaths_table(fleet.requests, answers) if name == "deaths" else waits_table(question, answers))
        written[name] = {
            case: {value: [asdict(figures) for figures in runs] for value, runs in by_value.items()}
            for case, by_value in answers.items()
        }
        if arguments.plots and name != "deaths":
            from dispatch_plots import draw  # imported here, because only plots need matplotlib

            means = {case: {value: mean_of("mean", runs) for value, runs in answers[case].items()} for case in PLOTTED}
            draw(arguments.plots / f"wait-by-{name}.svg", question.title, question.logarithmic, means)
    if arguments.json:
        arguments.json.write_text(json.dumps({"fleet": asdict(fleet), "answers": written}, indent=1, default=str))


if __name__ == "__main__":
    main()
