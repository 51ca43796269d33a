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
        name = engine["worker_name"]
        if engine["alive"]:
            found = f"{name} gets requests only if no other can serve them: {reason}."
            advice = f"Read its log, and send it a request with curl. `controller worker {name}` shows its state."
        else:
            found = f"{name} gets no requests: {reason}."
            advice = f"Start it, or `controller remove {name}` if it is gone for good."
        yield problem("engines", found, advice)
    if engines and not with_problem:
        yield ok("engines", f"{count(len(engines), 'engine')}, all ready")
