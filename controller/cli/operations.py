"""What the commands of operators do: requests to a running controller, and their results as text."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from controller.cli.api import request, request_reply
from controller.cli.workers import fetch_workers
from controller.domain.errors import ControllerRefused, ControllerUnreachable

_REFRESH_TIMEOUT: Final = 120.0  # seconds
_INTERVAL: Final = 1.0  # seconds between two looks at workers that drain
# After Redis lost its data, replicas restore the workers within seconds. Until then, none is listed.
_GONE_AFTER: Final = 8.0  # seconds for which a worker is not listed
DEADLINE_PASSED, SERVES_AGAIN = 3, 4  # exit statuses


async def find_workers(address: str, names: Sequence[str]) -> tuple[list[str], bool]:
    """Return the names of the workers that names and patterns cover, and whether a pattern covers several.

    Raises ControllerUnreachable, also if one of them covers no live worker.
    """
    known = [worker["worker_name"] for worker in await fetch_workers(address)]
    found = _covered(known, names)
    return found, any(len(_covered(known, [name])) > 1 for name in names)


async def wait_for_workers(address: str, workers: Sequence[str], deadline: float | None) -> int:
    """Wait until draining workers have finished their requests. Return the exit status.

    deadline: how long to wait, in seconds. None for any time.
    """
    ends_at = None if deadline is None else time.monotonic() + deadline
    try:
        return await _wait(address, set(workers), ends_at)
    except asyncio.CancelledError:
        click.echo("Not waiting any more. The workers go on draining. `controller resume` lets them serve again.")
        raise


async def change_workers(address: str, path: str, done: str, workers: Sequence[str], reason: str) -> bool:
    """Send a request for each worker. Return True if all workers were alive. Raises ControllerUnreachable.

    done: begins the line about a worker: "Resumed".
    """
    all_alive = True
    for name in workers:
        answer = await request(address, path, "exist", {"worker_name": name, "reason": reason})
        all_alive = all_alive and answer["exist"]
        click.echo(f"{done} {name}." if answer["exist"] else f"{name} is gone: its heartbeats have stopped.")
    return all_alive


async def refresh_workers(address: str) -> None:
    """Probe all workers, and print how many there are before and afterwards."""
    before = {worker["worker_name"] for worker in await fetch_workers(address)}
    click.echo(f"Probing {len(before)} workers.")
    await request(address, "/refresh_all_workers", "", {}, time_limit=_REFRESH_TIMEOUT)
    reply = await request_reply(address, "/workers", "workers")
    if reply.is_degraded:
        click.echo("Redis is unavailable, so it is unknown which workers are alive.", err=True)
        return
    after = {worker["worker_name"] for worker in reply.fields["workers"]}
    for name in sorted(before - after):
        click.echo(f"{name} is gone.")
    click.echo(f"{len(after)} workers are alive.")


def _covered(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the known workers that the names and patterns cover, in the order of `names`."""
    found: dict[str, None] = {}
    for name in names:
        covered = [worker for worker in known if _covers(name.rstrip("/"), worker)]
        if not covered:
            raise ControllerUnreachable(f"No live worker is named {name}. `controller workers` lists them.")
        found.update(dict.fromkeys(covered))
    return list(found)


def _covers(pattern: str, worker: str) -> bool:
    """Return True if a pattern covers a worker, with the scheme or without it. Brackets belong to IPv6 addresses."""
    form = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return any(re.fullmatch(form, name) for name in (worker, worker.partition("://")[2]))


async def _wait(address: str, names: set[str], ends_at: float | None) -> int:
    """Wait until workers have finished their requests or are gone. Return the exit status."""
    last: dict[str, int] = {}
    missing_since: dict[str, float] = {}
    listing = _Listing(address)
    while True:
        workers = await listing.read()
        for name in sorted(names) if workers is not None else ():
            worker = (workers or {}).get(name)
            if worker is None:
                if time.monotonic() - missing_since.setdefault(name, time.monotonic()) >= _GONE_AFTER:
                    names.discard(name)
                    click.echo(f"{name} is gone.")
                continue
            missing_since.pop(name, None)
            if worker["drained"]:
                names.discard(name)
                click.echo(f"{name} is idle.")
            elif not worker["draining"]:
                click.echo(f"{name} serves again: it was resumed. Not waiting any more.", err=True)
                return SERVES_AGAIN
            elif last.get(name) != (left := _left(worker)):
                last[name] = left
                click.echo(f"{name} has {left} requests left.")
        if not names:
            return 0
        if ends_at is not None and time.monotonic() >= ends_at:
            click.echo(f"The deadline has passed. Still draining: {', '.join(sorted(names))}.", err=True)
            return DEADLINE_PASSED
        await asyncio.sleep(_INTERVAL if ends_at is None else min(_INTERVAL, max(0.05, ends_at - time.monotonic())))


class _Listing:
    """Lists the workers at each call, and says once when it cannot."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._has_complained = False

    async def read(self) -> dict[str, dict[str, Any]] | None:
        """Return the live workers by name. None if they are unknown: the controller or its Redis is unavailable.

        Raises ControllerRefused.
        """
        try:
            reply = await request_reply(self._address, "/workers", "workers")
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
            click.echo(text, err=True)
        self._has_complained = True


def _left(worker: dict[str, Any]) -> int:
    return max(int(worker["queue_length"]), int(worker["leased"]))
