"""The commands of operators: drain, resume, remove and refresh workers, and watch what happens."""

import re
from collections.abc import Sequence

import click

from controller.cli.options import controller_address, run

_UNITS = {"s": 1, "m": 60, "h": 3600}

names = click.argument("names", metavar="WORKER...", nargs=-1, required=True)
reason = click.option("--reason", default="", help="Why, for the log and the events.")
yes = click.option("--yes", is_flag=True, help="Do not ask, even if a pattern covers several workers.")


class _Duration(click.ParamType[float]):
    """A number of seconds, written as 90, 90s, 10m or 2h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", str(value), re.ASCII)
        if not match:
            self.fail(f"{value!r} is not a time such as 90s, 10m or 2h.", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


@click.command()
@names
@reason
@click.option("--wait", is_flag=True, help="Wait until the workers have finished their requests.")
@click.option("--deadline", type=_Duration(), help="Wait at most for this time, such as 10m. Then exit with status 3.")
@yes
@controller_address
def drain(
    names: tuple[str, ...], reason: str, wait: bool, deadline: float | None, yes: bool, controller_address: str
) -> None:
    """Stop dispatching to workers. The requests that they have go on.

    WORKER is the address of a worker, or a pattern with * and ?. The scheme may be left out.

    \b
        controller drain http://10.0.0.5:21002 --wait --deadline 10m --reason "new driver"
        controller drain '10.0.0.*' --yes

    Ctrl-C ends the waiting. The workers go on draining. Run the command again to
    continue waiting.

    \b
    Exit status:
        0  the workers drain, and with --wait they have finished their requests or are gone
        1  an error, or a worker is not alive
        3  the deadline has passed
        4  a worker serves again, because it was resumed
    """
    from controller.cli.operations import wait_for_workers  # imported late, so that --help stays fast

    workers, all_alive = _change(controller_address, "/drain_worker", "Draining", names, reason, yes)
    if wait or deadline is not None:
        raise SystemExit(run(wait_for_workers(controller_address, workers, deadline)))
    raise SystemExit(0 if all_alive else 1)


@click.command()
@names
@reason
@yes
@controller_address
def resume(names: tuple[str, ...], reason: str, yes: bool, controller_address: str) -> None:
    """Dispatch to draining workers again. WORKER is as for `controller drain`."""
    _, all_alive = _change(controller_address, "/resume_worker", "Resumed", names, reason, yes)
    raise SystemExit(0 if all_alive else 1)


@click.command()
@names
@reason
@yes
@controller_address
def remove(names: tuple[str, ...], reason: str, yes: bool, controller_address: str) -> None:
    """Remove workers. WORKER is as for `controller drain`.

    A worker that still sends heartbeats registers again. Drain it to take it out of service.
    """
    _, all_alive = _change(controller_address, "/remove_worker", "Removed", names, reason, yes)
    raise SystemExit(0 if all_alive else 1)


def _change(
    address: str, path: str, done: str, names: Sequence[str], reason: str, yes: bool
) -> tuple[Sequence[str], bool]:
    """Ask if a pattern covers several workers, then send a request for each. Return them, and if all were alive.

    The question is outside of the event loop, which would keep Ctrl-C from ending it.
    """
    from controller.cli.operations import change_workers, find_workers  # imported late, so that --help stays fast

    workers, has_several = run(find_workers(address, names))
    if has_several and not yes:
        click.echo("\n".join(workers))
        click.confirm(f"These are {len(workers)} workers. Go on?", abort=True)
    return workers, run(change_workers(address, path, done, workers, reason))


@click.command()
@controller_address
def refresh(controller_address: str) -> None:
    """Probe all workers now. A worker that fails two probes is removed."""
    from controller.cli.operations import refresh_workers  # imported late, so that --help stays fast

    run(refresh_workers(controller_address))


@click.command()
@click.option(
    "--last", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many earlier ones to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@controller_address
def watch(last: int, as_json: bool, controller_address: str) -> None:
    """Show what happens in the cluster, until Ctrl-C.

    If the connection is lost, the command resumes where it was, at any replica.
    """
    from controller.cli.events import watch_events  # imported late, so that --help stays fast

    run(watch_events(controller_address, last, as_json))
