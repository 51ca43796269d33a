"""The command `controller dispatch`: sends dispatch requests, and shows how they spread over the workers."""

import asyncio
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console, RenderableType

from controller.cli.api import Reply, request_reply
from controller.cli.options import Controller, Interrupted
from controller.cli.tables import Column, bar, cell, create_console, fit_table, print_json
from controller.cli.text import count
from controller.domain.errors import ControllerUnreachable

_LEASE_TIME: Final = 300  # seconds after which the leases end by themselves, if this program is killed
_BAR: Final = 20  # characters
_AT_ONCE: Final = 16  # releases
_COLUMNS: Final = (
    Column("worker", shortens=True, prefix="http://"),
    Column("requests", right=True),
    Column("share", right=True),
    Column("spread"),
)


async def show_spread(controller: Controller, model: str, repeat: int, with_lease: bool, as_json: bool) -> bool:
    """Dispatch some requests, print where they went, and release them. Return True if all got a worker.

    Raises ControllerUnreachable, and Interrupted after Ctrl-C, after releasing what was booked.
    """
    workers: Counter[str] = Counter()
    leases: list[str] = []
    is_degraded = False
    body = {"model": model, "lease": _LEASE_TIME} if with_lease else {"model": model}
    try:
        for _ in range(repeat):
            reply = await _dispatch(controller, body, leases)
            workers[reply.fields["address"]] += 1
            is_degraded = is_degraded or reply.is_degraded
    except asyncio.CancelledError as error:
        released = await _release(controller, leases)
        notes = _notes(model, workers.total(), workers[""], released if with_lease else None, is_degraded)
        raise Interrupted(" ".join([f"Interrupted after {count(workers.total(), 'request')}.", *notes])) from error
    except ControllerUnreachable:
        await _release(controller, leases)
        raise
    released = await _release(controller, leases)
    missing = workers.pop("", 0)
    if as_json:
        counts = [{"worker_name": name, "requests": number} for name, number in workers.most_common()]
        print_json({"model": model, "requests": repeat, "without_worker": missing, "workers": counts})
        return not missing
    console = create_console()
    if workers:
        console.print(spread_table(model, workers, console))
    for note in _notes(model, repeat, missing, released if with_lease else None, is_degraded):
        console.print(cell(note, console.encoding), soft_wrap=not console.is_terminal)
    return not missing


async def _dispatch(controller: Controller, body: Mapping[str, Any], leases: list[str]) -> Reply:
    """Send one request, and add its lease to `leases`, even if this is cancelled while the response is on its way."""

    async def dispatch() -> Reply:
        reply = await request_reply(controller, "/get_worker_address", "address", body)
        if lease := reply.fields.get("lease"):
            leases.append(lease)
        return reply

    call = asyncio.create_task(dispatch())
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


async def _release(controller: Controller, leases: list[str]) -> int:
    """Release leases. Return how many were still active."""
    permits = asyncio.Semaphore(_AT_ONCE)

    async def release(lease: str) -> bool:
        async with permits:
            try:
                reply = await request_reply(controller, "/release_worker", "released", {"lease": lease})
            except ControllerUnreachable:  # it ends by itself
                return False
            return bool(reply.fields["released"])

    return sum(await asyncio.gather(*map(release, leases)))


def spread_table(model: str, workers: Mapping[str, int], console: Console) -> RenderableType:
    """Return a table with one row for each worker that got requests."""
    total, most = sum(workers.values()), max(workers.values())
    rows: list[dict[str, Any]] = [
        {
            "worker": cell(name, console.encoding),
            "requests": str(number),
            "share": f"{number / total:.1%}",
            "spread": bar(number / most, _BAR, console.encoding),
        }
        for name, number in sorted(workers.items(), key=lambda item: (-item[1], item[0]))
    ]
    title = f"{count(total, 'request')} of {model} on {count(len(workers), 'worker')}"
    return fit_table(title, _COLUMNS, 3, rows, console)


def _notes(model: str, repeat: int, missing: int, released: int | None, is_degraded: bool) -> list[str]:
    """Return what to know about the table. released: None if the requests had no lease."""
    notes = []
    if missing:
        reason = f"`controller explain {shlex.quote(model)}` says why."
        notes.append(f"{missing} of {count(repeat, 'request')} found no worker. {reason}")
    if is_degraded:
        notes.append("Redis is unavailable: the replica has dispatched from its snapshot, and grants no leases.")
    if released is not None and released:
        notes.append(f"Released {count(released, 'lease')}: nothing stays booked.")
    elif released is None and repeat > missing:
        notes.append("The requests stay booked. They count less as they age, and no more after a report of the worker.")
    return notes
