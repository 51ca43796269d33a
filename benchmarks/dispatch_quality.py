"""How long requests wait under our rules and under others: a simulation.

    python benchmarks/dispatch_quality.py [--loads 0.7 0.85 0.95] [--seeds 5] [--json results.json]

The rows "ours" run the rules of controller/domain, to which the Lua is tested equal. Beside them: stock FastChat,
lottery, round robin, the power of two choices by local counts in 8 routers, and one ideal queue in front of all slots,
which no system has. 0.11 s of each wait is the way to the worker.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from simulation import Fleet, Ideal, Lottery, Ours, Policy, RoundRobin, Simulation, Stock, TwoChoices

POLLS = 5.0


def cases(fleet: Fleet) -> Iterator[tuple[str, Fleet, Callable[[], Policy]]]:
    """A name, what is simulated, and the policy."""
    speeds, slots = fleet.speeds(), fleet.slots
    rng = random.Random(fleet.seed + 7)
    polled, leased = replace(fleet, poll_interval=POLLS), replace(fleet, lease_share=1.0)
    mixed = replace(polled, lease_share=0.5)
    yield "FastChat shortest_queue", fleet, lambda: Stock(speeds, rng)
    yield "lottery", fleet, lambda: Lottery(speeds, rng)
    yield "round robin", fleet, lambda: RoundRobin(speeds, rng)
    yield "two choices, 8 routers", fleet, lambda: TwoChoices(speeds, fleet.routers, rng)
    yield "ours, no decay", fleet, lambda: Ours(speeds, None, decay=False)
    yield "ours, no polls", fleet, lambda: Ours(speeds, None)
    yield "ours, no polls, capacity told", fleet, lambda: Ours(speeds, slots)
    yield "ours, as it comes", polled, lambda: Ours(speeds, None)
    yield "ours, capacity told", polled, lambda: Ours(speeds, slots)
    yield "ours, half lease", mixed, lambda: Ours(speeds, None)
    yield "ours, half lease, capacity told", mixed, lambda: Ours(speeds, slots)
    yield "ours, leases", leased, lambda: Ours(speeds, None)
    yield "ours, leases, capacity told", leased, lambda: Ours(speeds, slots)
    yield "one ideal queue", fleet, lambda: Ideal(speeds, slots)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7, 0.85, 0.95])
    parser.add_argument("--seeds", type=int, default=5, help="runs a figure, each with another seed (default: 5)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    for name, kind in (
        ("workers", int), ("slots", int), ("fast-share", float), ("fast-speed", float), ("service-mean", float),
        ("service-sigma", float), ("drift", float), ("requests", int), ("heartbeat-interval", float), ("routers", int),
    ):  # fmt: skip
        default = getattr(Fleet(), name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"(default: {default:g})")
    parser.add_argument("--bursts", action="store_true", help="arrivals in bursts, not as a Poisson process")
    arguments = parser.parse_args()
    fields = {name: value for name, value in vars(arguments).items() if name in asdict(Fleet())}
    console = Console(width=120)
    means: dict[str, dict[float, list[float]]] = {}
    tails: dict[str, dict[float, list[float]]] = {}
    runs = [
        (load, case)
        for load in arguments.loads
        for seed in range(arguments.seeds)
        for case in cases(Fleet(**fields, load=load, seed=seed))
    ]
    with Progress(console=console, transient=True) as progress:
        for load, (name, fleet, policy) in progress.track(runs, description="simulating"):
            waits = Simulation(fleet, policy()).run()
            waits = sorted(waits[len(waits) // 10 :])
            means.setdefault(name, {}).setdefault(load, []).append(sum(waits) / len(waits))
            tails.setdefault(name, {}).setdefault(load, []).append(waits[int(len(waits) * 0.99)])
    table = Table("seconds of waiting, mean / p99", title_justify="left")
    for load in arguments.loads:
        table.add_column(f"load {load:g}", justify="right")
    for name, by_load in means.items():
        cells = (
            f"{sum(by_load[load]) / arguments.seeds:.2f} / {sum(tails[name][load]) / arguments.seeds:.1f}"
            for load in arguments.loads
        )
        table.add_row(name, *cells)
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"fleet": fields, "means": means, "p99": tails}, indent=1))


if __name__ == "__main__":
    main()
