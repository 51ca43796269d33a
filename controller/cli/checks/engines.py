"""Checks of the engines that were registered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controller.cli.checks.finding import Finding, ok, problem
from controller.cli.text import count


def check_engines(engines: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield what is found in the response of GET `/engines`."""
    with_problem = [engine for engine in engines if engine["problem"] or not engine["alive"]]
    for engine in with_problem:
        reason = str(engine["problem"] or "it is not alive").rstrip(".")
        yield problem(
            "engines",
            f"{engine['worker_name']} gets {'fewer' if engine['alive'] else 'no'} requests: {reason}.",
            f"Start it, or `controller remove {engine['worker_name']}` if it is gone for good.",
        )
    if engines and not with_problem:
        yield ok("engines", f"{count(len(engines), 'engine')}, all ready")
