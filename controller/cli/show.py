"""The commands that show the state of a running controller."""

import click

from controller.cli.completion import complete_model, complete_worker
from controller.cli.options import (
    Controller,
    as_json,
    connects,
    interval,
    no_color,
    run,
    run_until_interrupted,
    stalled_after,
)

_MODEL_SORTS = ("name", "load", "queue", "workers")
_WORKER_SORTS = ("name", "state", "load", "queue", "stalled", "heartbeat")


@click.command(short_help="Show the live workers.")
@click.option("--model", default="", help="Only the workers of this model.", shell_complete=complete_model)
@click.option(
    "--sort",
    type=click.Choice(_WORKER_SORTS),
    default="name",
    show_default=True,
    help="What comes first. `state`: those with a problem. `load`: those with the most requests per slot. `stalled`: "
    "those whose requests have not finished for the longest time. `heartbeat`: those with the oldest one.",
)
@click.option("--watch", is_flag=True, help="Refresh in place until Ctrl-C. In a pipe, print the table each time.")
@interval
@stalled_after
@as_json
@no_color
@connects
def workers(
    model: str, sort: str, watch: bool, interval: float, stalled_after: float, as_json: bool, controller: Controller
) -> None:
    """Show the live workers of a running controller as a table.

    A terminal that is too narrow does not show the last columns. A state is one of these:

    \b
        serving   it gets requests
        failing   requests or polls have failed: it serves only if no other can
        stalled   it reports its queue, but its requests do not finish
        draining  it gets no new requests
        drained   it is draining, and has finished its requests

    The column slots has the number of requests that a worker runs at once. "5" is what the worker reports, "5 set" is
    configured, and "5 learned" comes from an engine's load. It is empty if the number is unknown. With --json and
    --watch, each refresh prints one line of JSON.

    If the terminal has no room, http:// is left out where all addresses begin with it, and then long names are
    shortened, so that different names stay different. `| cat` and --json show them in full. The exit status is 1 if no
    live worker serves the model of --model.

    \b
    Watch the workers with a problem, and find out more about one:
        controller workers --watch --sort state
        controller worker http://10.0.0.5:21002
    """
    from controller.cli.workers import show_workers  # imported late, so that --help stays fast

    call = show_workers(controller, model, sort, stalled_after, as_json, interval if watch else None)
    if watch:
        run_until_interrupted(call)
    else:
        raise SystemExit(0 if run(call) else 1)


@click.command(short_help="Show the registered engines, and why some are not ready.")
@as_json
@no_color
@connects
def engines(as_json: bool, controller: Controller) -> None:
    """Show a table of the registered engines. The reason follows for each one with a problem."""
    from controller.cli.engines import show_engines  # imported late, so that --help stays fast

    run(show_engines(controller, as_json))


@click.command(short_help="Show all about one worker, and its last events.")
@click.argument("name", metavar="WORKER", shell_complete=complete_worker)
@click.option("--last", type=click.IntRange(0, 1000), default=10, show_default=True, help="How many events to show.")
@stalled_after
@as_json
@no_color
@connects
def worker(name: str, last: int, stalled_after: float, as_json: bool, controller: Controller) -> None:
    """Show all about one worker, and its last events.

    WORKER is its address, without the scheme if you like, or a pattern with * and ? that covers this worker only.

    \b
        controller worker '*:21002'
    """
    from controller.cli.worker import show_worker  # imported late, so that --help stays fast

    run(show_worker(controller, name, last, stalled_after, as_json))


@click.command(short_help="Show the load of each model.")
@click.option("--sort", type=click.Choice(_MODEL_SORTS), default="name", show_default=True, help="What comes first.")
@stalled_after
@as_json
@no_color
@connects
def models(sort: str, stalled_after: float, as_json: bool, controller: Controller) -> None:
    """Show the load of each model, and which of them lack workers.

    A model without a worker is listed for 12 hours after its last one. The load is the number of running and waiting
    requests per slot, of the workers whose slots are known and that are not draining. A worker with several models
    counts for each of them.
    """
    from controller.cli.models import show_models  # imported late, so that --help stays fast

    run(show_models(controller, sort, stalled_after, as_json))


@click.command(short_help="Show the replicas, and in what they differ.")
@as_json
@no_color
@connects
def replicas(as_json: bool, controller: Controller) -> None:
    """Show the live replicas of the cluster, and in which versions and settings they differ.

    All replicas of a cluster should have the same settings, except for addresses, files and the log.
    """
    from controller.cli.replicas import show_replicas  # imported late, so that --help stays fast

    run(show_replicas(controller, as_json))


@click.command(short_help="Watch models, workers and events on one screen.")
@click.option(
    "--sort", type=click.Choice(_WORKER_SORTS), default="state", show_default=True, help="Which workers come first."
)
@interval
@stalled_after
@no_color
@connects
def top(sort: str, interval: float, stalled_after: float, controller: Controller) -> None:
    """Watch models, workers and events on one screen.

    The keys s and S change the order of the workers, q ends. In a pipe, or on a terminal that cannot move its cursor,
    the command prints the same once and ends.
    """
    from controller.cli.top import show_top  # imported late, so that --help stays fast

    run_until_interrupted(show_top(controller, sort, stalled_after, interval))


@click.command(short_help="Explain which worker the next request would get.")
@click.argument("model", shell_complete=complete_model)
@as_json
@no_color
@connects
def explain(model: str, as_json: bool, controller: Controller) -> None:
    """Explain which worker the next request of MODEL would get, and why. Nothing is booked.

    \b
    The column cost compares the workers of one state, the lowest first:
        free     requests per unit of speed
        full     the wait of the next request, in durations of a request
        failing  as one of these two

    The exit status is 1 if no worker can be chosen.
    """
    from controller.cli.explanation import show_explanation  # imported late, so that --help stays fast

    raise SystemExit(0 if run(show_explanation(controller, model, as_json)) else 1)


@click.command(short_help="Dispatch requests, and show how they spread.")
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--repeat", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many requests to dispatch."
)
@click.option("--no-lease", is_flag=True, help="Dispatch without leases, as FastChat's clients do.")
@as_json
@no_color
@connects
def dispatch(model: str, repeat: int, no_lease: bool, as_json: bool, controller: Controller) -> None:
    """Dispatch requests of MODEL, and show how they spread over its workers.

    This books requests like any client, but sends none to the workers. So while it runs, real requests may go to other
    workers than they would otherwise. `controller explain` books nothing.

    Each request is booked with a lease, and all leases are released at the end, even after Ctrl-C. If this program is
    killed, they end after 5 minutes. With --no-lease, nothing can be released: each booking counts less as it ages, and
    the next report of its worker replaces it.

    The exit status is 1 if a request found no worker.
    """
    from controller.cli.spread import show_spread  # imported late, so that --help stays fast

    call = show_spread(controller, model, repeat, not no_lease, as_json)
    raise SystemExit(0 if run(call, "Interrupted. Leases that were not released end within 5 minutes.") else 1)


@click.command(short_help="Check Redis, replicas, settings and workers.")
@stalled_after
@as_json
@no_color
@connects
def doctor(stalled_after: float, as_json: bool, controller: Controller) -> None:
    """Check the cluster: Redis, replicas, settings and workers. Say what each finding means, and what to do.

    The replica that answers checks its Redis, as far as the rights of its Redis user allow. Nothing is changed.

    \b
    Exit status:
        0  no problems, maybe warnings
        1  a problem, or the controller cannot be reached
    """
    from controller.cli.doctor import examine  # imported late, so that --help stays fast

    raise SystemExit(0 if run(examine(controller, stalled_after, as_json)) else 1)


@click.command(short_help="Print the versions of this program and of the replicas.")
@as_json
@connects
def version(as_json: bool, controller: Controller) -> None:
    """Print the version of this program, and those of the replicas if a controller can be reached."""
    from controller.cli.replicas import show_version  # imported late, so that --help stays fast

    run(show_version(controller, as_json))
