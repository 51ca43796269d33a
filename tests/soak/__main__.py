"""Runs a soak for as long as wanted: `make soak ARGS="--seconds 1800 --seed 7"`."""

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.soak.soak import problems, run_soak
from tests.support import lifeline


@click.command()
@click.option("--seconds", default=1800.0, show_default=True, help="How long to run after the warm-up.")
@click.option("--warm-up", default=60.0, show_default=True, help="How long to run before the first measurement.")
@click.option("--fault-every", default=20.0, show_default=True, help="Seconds between two faults.")
@click.option("--workers", default=500, show_default=True, help="How many workers there are at a time.")
@click.option("--seed", type=int, help="Seed of the calls and faults. The default is a random one.")
def main(seconds: float, warm_up: float, fault_every: float, workers: int, seed: int | None) -> None:
    """Let workers come and go while replicas and Redis fail, and check that nothing is left over."""
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    began = time.monotonic()
    click.echo(f"SOAK_SEED={seed}")
    stop = lifeline.start_watchdog()
    try:
        with tempfile.TemporaryDirectory(prefix="cc-", ignore_cleanup_errors=True) as directory:
            summary = asyncio.run(
                run_soak(
                    Path(directory),
                    seed,
                    workers=workers,
                    warm_up=warm_up,
                    seconds=seconds,
                    fault_every=fault_every,
                    report=lambda text: click.echo(f"{time.monotonic() - began:.0f} s: {text}"),
                )
            )
    finally:
        stop()
    click.echo(summary)
    if found := problems(summary):
        click.echo("\n".join(found))
        sys.exit(1)


if __name__ == "__main__":
    main()
