"""Implements the commands of operators: sends the requests to a running controller and formats the results."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from controller.cli.api import request, request_reply
from controller.cli.engines import ENGINES_TIMEOUT
from controller.cli.options import Controller, Interrupted
from controller.cli.patterns import covered
from controller.cli.text import count, duration, printable
from controller.cli.workers import fetch_workers
from controller.domain.errors import ControllerRefused, ControllerUnreachable
from controller.domain.stalls import STALLED_AFTER

_REFRESH_TIMEOUT: Final = 120.0  # seconds
_INTERVAL: Final = 1.0  # seconds between two looks at workers that drain
# After Redis lost its data, replicas restore the workers within seconds. Until then, none is listed.
_GONE_AFTER: Final = 8.0  # seconds for which a worker is not listed
DEADLINE_PASSED, SERVES_AGAIN, NOT_KNOWN = 3, 4, 5  # exit statuses


async def find_workers(
    controller: Controller, names: Sequence[str], *, has_engines: bool = False
) -> tuple[list[str], bool]:
    """Return the names of the workers that names and patterns cover, and whether a pattern covers several.

    has_engines: registered engines count, too, alive or not.

    Raises ControllerUnreachable, also if one of them covers no live worker.
    """
    known = [worker["worker_name"] for worker in await fetch_workers(controller)]
    problem: ControllerUnreachable | None = None
    if has_engines:
        patient = controller._replace(timeout=max(controller.timeout, ENGINES_TIMEOUT))
        try:
            engines = (await request(patient, "/engines", "engines"))["engines"]
            known = list(dict.fromkeys([*known, *(engine["worker_name"] for engine in engines)]))
        except ControllerUnreachable as error:  # of an older controller, or without Redis
            problem = None if isinstance(error, ControllerRefused) else error
    try:
        found = covered(known, names)
    except ControllerUnreachable as error:
        raise problem or error from error  # the name may be that of an engine that is not alive
    return found, any(len(covered(known, [name])) > 1 for name in names)


async def wait_for_workers(controller: Controller, workers: Sequence[str], deadline: float | None) -> int:
    """Wait until draining workers have finished their requests. Return the exit status.

    deadline: how long to wait, in seconds. None for any time.

    Raises ControllerRefused, and Interrupted after Ctrl-C.
    """
    ends_at = None if deadline is None else time.monotonic() + deadline
    try:
        return await _wait(controller, set(workers), ends_at)
    except asyncio.CancelledError as error:
        raise Interrupted(
            "Not waiting any more. The workers keep draining. `controller resume` lets them serve again."
        ) from error


async def change_workers(controller: Controller, path: str, done: str, workers: Sequence[str], reason: str) -> bool:
    """Send a request for each worker. Return True if all workers were alive.

    done: begins the line about a worker: "Resumed".

    Raises ControllerUnreachable, and Interrupted after Ctrl-C.
    """
    all_alive = True
    for number, name in enumerate(workers):
        try:
            answer = await request(controller, path, "exist", {"worker_name": name, "reason": reason})
        except asyncio.CancelledError as error:
            raise Interrupted(
                f"Interrupted after {number} of {count(len(workers), 'worker')}. The request about {name} may have "
                "been carried out, too. `controller workers` shows the state."
            ) from error
        all_alive = all_alive and answer["exist"]
        _say(f"{done} {name}." if answer["exist"] else f"{name} is gone: its heartbeats have stopped.")
    return all_alive


async def refresh_workers(controller: Controller) -> bool:
    """Probe all workers, and print how many there are before and afterwards. Return False if that is unknown."""
    before = {worker["worker_name"] for worker in await fetch_workers(controller)}
    click.echo(f"Probing {count(len(before), 'worker')}.")
    patient = controller._replace(timeout=max(controller.timeout, _REFRESH_TIMEOUT))
    await request(patient, "/refresh_all_workers", "", {})
    reply = await request_reply(controller, "/workers", "workers")
    if reply.is_degraded:
        click.echo("Redis is unavailable, so no worker was probed, or it is unknown which are alive.", err=True)
        return False
    after = {worker["worker_name"] for worker in reply.fields["workers"]}
    for name in sorted(before - after):
        _say(f"{name} is gone.")
    click.echo(f"{count(len(after), 'live worker')}.")
    return True


async def _wait(controller: Controller, names: set[str], ends_at: float | None) -> int:
    """Wait until workers have finished their requests or are gone. Return the exit status."""
    status = 0
    last: dict[str, int] = {}
    missing_since: dict[str, float] = {}
    stalled: set[str] = set()  # that were reported
    listing = _Listing(controller)
    while True:
        workers = await listing.read(ends_at)
        for name in sorted(names) if workers is not None else ():
            worker = (workers or {}).get(name)
            if worker is None:
                if time.monotonic() - missing_since.setdefault(name, time.monotonic()) >= _GONE_AFTER:
                    names.discard(name)
                    _say(f"{name} is gone.")
                continue
            missing_since.pop(name, None)
            if worker["drained"]:
                names.discard(name)
                if worker["check_heart_beat"] or worker["polled"]:
                    _say(f"{name} is idle.")
                    continue
                status = NOT_KNOWN
                _say(
                    f"{name}: it is not known whether requests are left. It sends no heartbeats and has answered no "
                    "poll, so it has never reported its queue.",
                    err=True,
                )
            elif not worker["draining"]:
                _say(f"{name} serves again: it was resumed. Not waiting any more.", err=True)
                return SERVES_AGAIN
            elif last.get(name) != (left := _left(worker)):
                last[name] = left
                _say(f"{name} has {count(left, 'request')} left.")
            elif (stalled_for := worker.get("stalled_for") or 0.0) >= STALLED_AFTER and name not in stalled:
                stalled.add(name)
                _say(f"{name} is stalled: none of its requests has finished for {duration(stalled_for)}.")
        if not names:
            return status
        if ends_at is not None and time.monotonic() >= ends_at:
            _say(f"The deadline has passed. Still draining: {', '.join(sorted(names))}.", err=True)
            return DEADLINE_PASSED
        await asyncio.sleep(_INTERVAL if ends_at is None else min(_INTERVAL, max(0.05, ends_at - time.monotonic())))


class _Listing:
    """Lists the workers at each call, and says once when it cannot."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._has_complained = False

    async def read(self, ends_at: float | None) -> dict[str, dict[str, Any]] | None:
        """Return the live workers by name. None if they are unknown: the controller or its Redis is unavailable.

        ends_at: when to stop waiting for a response, on the monotonic clock. None for the time of --timeout.

        Raises ControllerRefused.
        """
        timeout = self._controller.timeout
        if ends_at is not None:
            timeout = min(timeout, max(0.1, ends_at - time.monotonic()))
        try:
            reply = await request_reply(self._controller._replace(timeout=timeout), "/workers", "workers")
        except ControllerRefused:
            raise
        except ControllerUnreachable as error:
            self._complain(f"{error} Trying again.")
            return None
        if reply.is_degraded:  # a snapshot may be older than the drain
            self._complain("Redis is unavailable, so the controller lists an old state. Waiting for Redis.")
            return None
        self._has_complained = False
        return {worker["worker_name"]: worker for worker in reply.fields["workers"]}

    def _complain(self, text: str) -> None:
        if not self._has_complained:
            _say(text, err=True)
        self._has_complained = True


def _say(text: str, err: bool = False) -> None:
    """Print a line. Names come from the network."""
    click.echo(printable(text), err=err)


def _left(worker: dict[str, Any]) -> int:
    return max(int(worker["queue_length"]), int(worker["leased"]))
