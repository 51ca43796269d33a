"""The measurements of how long scripts take: those of benchmarks/longest_scripts.py, and the line in the summary."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from longest_fleets import FLEETS
from longest_scripts import longest_runs, measure_all, results_table
from rich.console import Console
from rich.progress import Progress

from controller.store import scripts
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry
from tests.support import longest_scripts
from tests.support.budget import small_budget
from tests.support.samples import A, worker


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sets", "own-16"])
def test_benchmark_measures_every_script_in_80_columns(short_dir: Path, name: str) -> None:
    fleet = replace(FLEETS[name], leases=40)
    with EmbeddedStore(short_dir / "longest") as store:
        progress = Progress(console=Console(quiet=True))
        [measured] = asyncio.run(measure_all(store.url, [fleet], workers=3, rounds=1, progress=progress))
    assert {script for script, _ in measured.runs} == set(scripts.names())
    clock, processor = longest_runs(measured)
    assert clock.milliseconds == max(max(runs.times) for runs in measured.runs.values())
    assert processor.milliseconds > 0
    assert {clock.script, processor.script} <= set(scripts.names())
    console = Console(width=80)
    with console.capture() as printed:
        console.print(results_table(measured, fleet.title))
    assert len(printed.get().splitlines()) == 2 + len(measured.runs)
    assert "…" not in printed.get()


def configuration(**attributes: Any) -> pytest.Config:
    return cast(pytest.Config, SimpleNamespace(stash=pytest.Stash(), **attributes))


async def test_summary_shows_the_longest_run_of_all_processes(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = configuration()
    assert longest_scripts.summary(main) == []
    with EmbeddedStore(short_dir / "slow") as store:
        longest_scripts.record(store.url)
        client = connect(store.url, timeout=60.0)
        await client.config_set("slowlog-log-slower-than", 0)
        await client.set(b"\xc3(", b"\xff")
        registry = Registry(client, "slow", 90.0, 60.0)
        await registry.register(worker(A))
        await registry.close()
        small_budget(monkeypatch)
        changed = Registry(client, "slow", 90.0, 60.0)
        await changed.sweep(1.0)
        await changed.close()
        await client.aclose()
        child = configuration(workeroutput={})
        longest_scripts.collect(child, store.url, "embedded")
        longest_scripts.collect(main, store.url, "redis-server")
    [(milliseconds, *names)] = child.workeroutput[longest_scripts.RUNS]  # type: ignore[attr-defined]
    assert names == ["register", "embedded"], "the changed script must be left out"
    assert milliseconds > 0
    slower = {longest_scripts.RUNS: [(milliseconds + 7.0, "sweep", "embedded")]}
    longest_scripts.collect_from(SimpleNamespace(config=main, workeroutput=slower))
    longest_scripts.collect_from(SimpleNamespace(config=main))
    assert longest_scripts.summary(main) == [f"longest script: sweep, {milliseconds + 7.0:.1f} ms, on embedded"]
