"""Checks of the workers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from controller.cli.checks.finding import Finding, ok, problem, some, warning
from controller.cli.models import NONE_MISSING, models_of
from controller.cli.text import count, duration
from controller.cli.workers import Worker, is_stalled, sort_workers

_ALMOST_FULL: Final = 0.9


def check_workers(
    workers: Sequence[Worker],
    settings: Mapping[str, Any],
    stalled_after: float,
    missing: Mapping[str, float] = NONE_MISSING,
) -> Iterator[Finding]:
    """Yield what is found in the response of GET `/workers`. settings: of one replica. missing: as in models_of()."""
    yield from _missing(missing)
    if not workers:
        yield warning(
            "workers",
            "No worker is alive, so no request can be dispatched.",
            "Start workers with the address of this controller. `controller watch` shows them as they register.",
        )
        return
    found = [
        *_failing(workers),
        *_stalled(workers, stalled_after),
        *_drained(workers),
        *_never_polled(workers, settings),
        *_models(workers, stalled_after),
        *_capacities(workers),
    ]
    limit = settings.get("max_workers")
    if limit and len(workers) >= _ALMOST_FULL * limit:
        found.append(
            warning(
                "workers",
                f"{len(workers):,} of --max-workers {limit:,} are alive. More than that cannot register.",
                "Raise --max-workers on all replicas.",
            )
        )
    yield from found
    if not found and not missing:
        yield ok("workers", f"{count(len(workers), 'worker')}, none failing or stalled")


def _missing(missing: Mapping[str, float]) -> Iterator[Finding]:
    if missing:
        longest = duration(max(0.0, time.time() - min(missing.values())))
        yield problem(
            "missing models",
            f"No worker is alive for {some(list(missing))}, for up to {longest}. Their requests fail.",
            "Start workers of them. `controller watch --last 1000` shows what happened to the last ones. A model that "
            "was retired is reported for 12 hours.",
        )


def _failing(workers: Sequence[Worker]) -> Iterator[Finding]:
    for reason, text in (
        ("polls", "does not answer status polls. It is overloaded, hangs, or cannot be reached"),
        ("request", "has failed a request since its last heartbeat"),
    ):
        names = [worker["worker_name"] for worker in workers if worker["failing"] == reason]
        if names:
            yield problem(
                "failing workers",
                f"{some(names)}: {'this worker' if len(names) == 1 else 'each of these'} {text}.",
                "See the log of the worker. It gets requests again once it answers.",
            )


def _stalled(workers: Sequence[Worker], stalled_after: float) -> Iterator[Finding]:
    """Yield the stalled workers that are not draining."""
    stalled = [
        worker
        for worker in sort_workers(workers, "stalled", stalled_after)
        if is_stalled(worker, stalled_after) and not worker["draining"]
    ]
    if stalled:
        names = [worker["worker_name"] for worker in stalled]
        yield problem(
            "stalled workers",
            f"{some(names)}: the queue is reported, but no request has finished "
            f"for {duration(stalled[-1]['stalled_for'])} or more. A worker that hangs looks like this. One with very "
            "long requests does, too.",
            f"Look at it with `controller worker {names[0]}`. If it hangs, `controller drain {names[0]} "
            "--reason ...`, and restart it.",
        )


def _drained(workers: Sequence[Worker]) -> Iterator[Finding]:
    names = [worker["worker_name"] for worker in workers if worker["drained"]]
    if names:
        yield warning(
            "drained workers",
            f"{some(names)}: draining, without a request. Such a worker gets none until it is resumed.",
            f"`controller resume {names[0]}` if it should get requests, otherwise stop it and "
            f"`controller remove {names[0]}`. `controller events` shows who drained it.",
        )


def _never_polled(workers: Sequence[Worker], settings: Mapping[str, Any]) -> Iterator[Finding]:
    interval = settings.get("poll_interval")
    if not interval:
        return
    names = [worker["worker_name"] for worker in workers if not worker["polled"] and not worker["failing"]]
    if names:
        yield warning(
            "unreachable workers",
            f"{some(names)}: no answer to a status poll yet. Unless registered within the last {interval:g} s, the "
            "replicas do not reach the worker, and its load is an estimate between two heartbeats.",
            "Open the network from the replicas to the workers, or leave it: clients may still reach them.",
        )


def _models(workers: Sequence[Worker], stalled_after: float) -> Iterator[Finding]:
    models = models_of(workers, "name", stalled_after)
    draining = [model["model"] for model in models if model["draining"] == model["workers"]]
    if draining:
        yield problem(
            "models",
            f"No worker serves {some(draining)}: all are draining.",
            "Resume or start workers.",
        )
    troubled = [model["model"] for model in models if not model["serving"] and model["model"] not in draining]
    if troubled:
        yield warning(
            "models",
            f"All workers of {some(troubled)} are draining, failing or stalled. Failing and stalled workers still get "
            "requests.",
            "`controller models` shows what is wrong with them.",
        )
    full = [model["model"] for model in models if model["serving"] and (model["saturation"] or 0) >= 1]
    if full:
        yield warning(
            "models",
            f"All slots are in use: {some(full)}. Requests wait at the workers.",
            "Start more workers of these models.",
        )


def _capacities(workers: Sequence[Worker]) -> Iterator[Finding]:
    sized: dict[str, set[bool]] = {}
    for models, known in {(tuple(worker["model_names"]), worker["capacity"] is not None) for worker in workers}:
        for model in models:
            sized.setdefault(model, set()).add(known)
    mixed = sorted(model for model, kinds in sized.items() if len(kinds) > 1)
    if mixed:
        yield warning(
            "capacities",
            f"{some(mixed)}: the slots of some workers are known, and of others not. The workers without known slots "
            "get all requests that find no free slot.",
            "Set them for all workers of a model, or for none: `controller capacity set MODEL N`.",
        )
