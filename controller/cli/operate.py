"""The commands of operators: register, drain, resume, remove and refresh workers, and watch what happens."""

from collections.abc import Sequence
from typing import Final

import click

from controller.cli.completion import complete_worker
from controller.cli.engine_options import Description, describes_engine
from controller.cli.options import Controller, Duration, as_json, connects, no_color, run, run_until_interrupted
from controller.cli.text import printable
from controller.domain.engine import Protocol
from controller.domain.engine_entry import AUTO
from controller.domain.engine_status import EngineKind

FASTCHAT: Final = str(Protocol.FASTCHAT)
names = click.argument("names", metavar="WORKER...", nargs=-1, required=True, shell_complete=complete_worker)
reason = click.option("--reason", default="", help="Why, for the log and the events.")
yes = click.option("--yes", is_flag=True, help="Do not ask, even if a pattern covers several workers.")


@click.command(short_help="Stop dispatching to workers, and wait for them.")
@names
@reason
@click.option("--wait", is_flag=True, help="Wait until the workers have finished their requests.")
@click.option("--deadline", type=Duration(), help="Wait at most for this time, such as 10m. Then exit with status 3.")
@yes
@connects
def drain(
    names: tuple[str, ...], reason: str, wait: bool, deadline: float | None, yes: bool, controller: Controller
) -> None:
    """Stop dispatching to workers. The requests that they have continue.

    WORKER is the address of a worker, or a pattern with * and ?. The scheme may be left out.

    \b
        controller drain 10.0.0.5:21002 --wait --deadline 10m --reason "driver"
        controller drain '10.0.0.*' --yes

    Ctrl-C ends the waiting. The workers keep draining. Run the command again to
    continue waiting.

    \b
    Exit status:
        0  the workers drain, and with --wait are idle or gone
        1  an error, or a worker is not alive
        3  the deadline has passed
        4  a worker serves again, because it was resumed
        5  no request is known, but a worker has never reported its queue
        130  Ctrl-C has ended the command
    """
    from controller.cli.operations import wait_for_workers  # imported late, so that --help stays fast

    workers, all_alive = _change(controller, "/drain_worker", "Draining", names, reason, yes)
    if wait or deadline is not None:
        interrupted = "Not waiting any more. The workers keep draining."
        raise SystemExit(run(wait_for_workers(controller, workers, deadline), interrupted))
    raise SystemExit(0 if all_alive else 1)


@click.command(short_help="Dispatch to draining workers again.")
@names
@reason
@yes
@connects
def resume(names: tuple[str, ...], reason: str, yes: bool, controller: Controller) -> None:
    """Dispatch to draining workers again. WORKER is as for `controller drain`."""
    _, all_alive = _change(controller, "/resume_worker", "Resumed", names, reason, yes)
    raise SystemExit(0 if all_alive else 1)


@click.command(short_help="Remove workers.")
@names
@reason
@yes
@connects
def remove(names: tuple[str, ...], reason: str, yes: bool, controller: Controller) -> None:
    """Remove workers. WORKER is as for `controller drain`.

    A worker that still sends heartbeats registers again. Drain it to take it out of service. An engine is not polled
    any more. Engines that are down can be removed, too.
    """
    _, all_alive = _change(controller, "/remove_worker", "Removed", names, reason, yes, has_engines=True)
    raise SystemExit(0 if all_alive else 1)


def _change(
    controller: Controller,
    path: str,
    done: str,
    names: Sequence[str],
    reason: str,
    yes: bool,
    *,
    has_engines: bool = False,
) -> tuple[Sequence[str], bool]:
    """Ask if a pattern covers several workers, then send a request for each. Return them, and if all were alive.

    The question is outside of the event loop, which would keep Ctrl-C from ending it.
    """
    from controller.cli.operations import change_workers, find_workers  # imported late, so that --help stays fast

    workers, has_several = run(find_workers(controller, names, has_engines=has_engines))
    if has_several and not yes:
        click.echo("\n".join(map(printable, workers)))
        if not _agrees(f"These are {len(workers)} workers. Continue?"):
            click.echo("Nothing was changed.", err=True)
            raise SystemExit(1)
    interrupted = "Interrupted. Some of the workers may have been changed. `controller workers` shows the state."
    return workers, run(change_workers(controller, path, done, workers, reason), interrupted)


def _agrees(question: str) -> bool:
    """Ask a question. Ctrl-C, and the end of the input, mean no."""
    try:
        return click.confirm(question)
    except click.Abort:
        click.echo(err=True)
        return False


@click.command(short_help="Register an engine, or a worker that does not register itself.")
@click.argument("url")
@click.option(
    "--engine",
    type=click.Choice([AUTO, *map(str, EngineKind), FASTCHAT]),
    default=AUTO,
    show_default=True,
    metavar="KIND",
    help=f"Kind of the engine: {', '.join(EngineKind)}, fastchat for a worker that speaks FastChat's protocol, or auto "
    "to detect it.",
)
@describes_engine
@click.option("--queue-length", type=click.IntRange(0), default=0, help="fastchat: requests that the worker has now.")
@click.option(
    "--no-heartbeats", is_flag=True, help="fastchat: the worker sends no heartbeats, and stays until it is removed."
)
@click.option("--multimodal", is_flag=True, help="fastchat: the worker accepts images.")
@no_color
@connects
def register(
    url: str,
    engine: str,
    queue_length: int,
    no_heartbeats: bool,
    multimodal: bool,
    description: Description,
    controller: Controller,
) -> None:
    """Register the engine or the worker at URL, and show what the controller has registered.

    The controller asks an engine, such as vLLM or llama.cpp, for its models, its capacity and its load, and polls it
    from then on. An engine is registered until it is removed. Workers of FastChat register themselves.

    \b
    Register an engine, and give its model a public name:
        controller register http://10.0.0.5:8000
        controller register http://10.0.0.5:8000 --model Qwen/Qwen3-8B=qwen-8b

    \b
    Register a server that speaks FastChat's protocol and sends no heartbeats:
        controller register http://10.0.0.9:8000 --engine fastchat \\
            --model llama-3 --no-heartbeats
    """
    from controller.cli.registration import Details, register_worker  # imported late, so that --help stays fast

    if queue_length or no_heartbeats or multimodal:
        if engine not in (AUTO, FASTCHAT):
            raise click.UsageError("--queue-length, --no-heartbeats and --multimodal are for --engine fastchat.")
        engine = FASTCHAT
    has_status = description.speed != 1.0 or queue_length or description.capacity is not None
    if engine == FASTCHAT and has_status and not description.models:
        raise click.UsageError("--speed, --queue-length and --capacity need --model: without it, the worker is asked.")
    if engine == FASTCHAT and description.key_file is not None:
        raise click.UsageError("--api-key-file is for engines. Workers of FastChat have --upstream-tokens-file.")
    details = Details(engine, description, queue_length, not no_heartbeats, multimodal)
    interrupted = "Interrupted. The worker may have been registered. `controller workers` lists it then."
    for sentence in run(register_worker(controller, url, details), interrupted):
        click.echo(printable(sentence))


@click.command(short_help="Probe all workers now.")
@connects
def refresh(controller: Controller) -> None:
    """Probe all workers now. A worker that fails two probes is removed.

    The exit status is 1 if the result is unknown, because Redis is unavailable.
    """
    from controller.cli.operations import refresh_workers  # imported late, so that --help stays fast

    interrupted = "Interrupted. The controller continues if it has begun to probe the workers."
    raise SystemExit(0 if run(refresh_workers(controller), interrupted) else 1)


@click.command(short_help="Show events as they happen.")
@click.option(
    "--last", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many earlier events to show."
)
@as_json
@connects
def watch(last: int, as_json: bool, controller: Controller) -> None:
    """Show what happens in the cluster, until Ctrl-C.

    If the connection is lost, the command resumes where it was, at any replica. With --json, each event is one line.
    """
    from controller.cli.events import watch_events  # imported late, so that --help stays fast

    run_until_interrupted(watch_events(controller, last, as_json))
