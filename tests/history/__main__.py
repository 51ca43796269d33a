"""Runs random calls and faults for a chosen time, and checks the results.

make history ARGS="--seconds 1800 --seed 7"
"""

import asyncio
import random
import sys
import tempfile
from pathlib import Path

import click

from tests.history.faults import FAULTS, LOSSY_FAILOVER
from tests.history.run import Violation, run_history
from tests.support import lifeline

NAMES = [*FAULTS, LOSSY_FAILOVER]


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long to run.")
@click.option("--seed", type=int, help="Seed of the calls and faults. The default is a random one.")
@click.option("--replicas", default=3, show_default=True, help="How many replicas to run.")
@click.option("--fault", "faults", multiple=True, type=click.Choice(NAMES), help="Use only this fault. Repeatable.")
@click.option("--source", type=click.Path(path_type=Path), help="Directory with the controller and lua to run.")
def main(seconds: float, seed: int | None, replicas: int, faults: tuple[str, ...], source: Path | None) -> None:
    """Run a history on real processes, and check it."""
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    stop = lifeline.start_watchdog()
    click.echo(f"HISTORY_SEED={seed}")
    try:
        with tempfile.TemporaryDirectory(prefix="cc-", ignore_cleanup_errors=True) as directory:
            history = run_history(
                Path(directory),
                seconds,
                seed,
                replicas=replicas,
                faults=faults or NAMES,
                source=source,
                report=_show,
            )
            summary = asyncio.run(history)
        click.echo(f"\n{summary}")
    except Violation as violation:
        click.echo(f"\n{violation}")
        sys.exit(1)
    finally:
        stop()


def _show(text: str) -> None:
    click.echo(f"\r{text} ", nl=False)


if __name__ == "__main__":
    main()
