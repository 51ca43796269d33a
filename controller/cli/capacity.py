"""The commands `controller capacity ...`: how many requests the workers run at once."""

from typing import Final

import click

from controller.cli.options import Controller, as_json, connects, no_color, run
from controller.domain.worker import MAX_CAPACITY

_INTERRUPTED: Final = "Interrupted. The capacity may have been changed. `controller capacity list` shows it."


@click.group()
def capacity() -> None:
    """Show or set how many requests the workers run at once.

    A worker with a free slot gets a request before a worker without one. Workers of FastChat do not report their
    number of slots, which is their --limit-worker-concurrency, 5 by default.

    \b
    Set it for each worker of a model, or for one worker:
        controller capacity set vicuna-7b 5
        controller capacity set http://10.0.0.5:21002 8

    \b
    Show what is set, and remove it:
        controller capacity list
        controller capacity unset vicuna-7b
    """


@capacity.command("list")
@as_json
@no_color
@connects
def list_capacities(as_json: bool, controller: Controller) -> None:
    """Show the capacities that were set, as a table.

    `controller workers` shows which capacity each live worker has.
    """
    from controller.cli.capacities import show_capacities  # imported late, so that --help stays fast

    run(show_capacities(controller, as_json))


@capacity.command("set")
@click.argument("target")
@click.argument("slots", metavar="N", type=click.IntRange(1, MAX_CAPACITY))
@connects
def set_(target: str, slots: int, controller: Controller) -> None:
    """Set the capacity of a worker or of a model to N requests at once.

    TARGET is the URL of a worker, if it begins with http:// or https://, and otherwise a model. The capacity applies to
    live workers at once, and is kept until it is removed. The worker need not be registered.

    \b
    A worker has the first of these capacities that is known:
        1. set for the worker by this command
        2. reported by the worker
        3. set for its models by this command: the smallest
        4. `controller serve --capacity` for its models: the smallest
        5. `controller serve --default-capacity`
    """
    from controller.cli.capacities import set_capacity  # imported late, so that --help stays fast

    click.echo(run(set_capacity(controller, target, slots), _INTERRUPTED))


@capacity.command()
@click.argument("target")
@connects
def unset(target: str, controller: Controller) -> None:
    """Remove the capacity that was set for a worker or for a model.

    TARGET is the URL of a worker, if it begins with http:// or https://, and otherwise a model.
    """
    from controller.cli.capacities import set_capacity  # imported late, so that --help stays fast

    click.echo(run(set_capacity(controller, target, None), _INTERRUPTED))
