"""The commands `controller route set`, `list` and `remove`."""

import re
from collections.abc import Sequence
from typing import Final

import click

from controller.cli.completion import complete_models, complete_route
from controller.cli.options import Controller, as_json, connects, no_color, run

_WEIGHT: Final = re.compile(r"[0-9]{1,20}\Z")


def _parts(values: Sequence[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _targets(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Return the weights by name. The last "=" separates a name from its weight, because a name may have others."""
    found: dict[str, int] = {}
    for part in _parts(values):
        name, separator, weight = part.rpartition("=")
        if not separator:
            name, weight = part, "1"
        if not name or not _WEIGHT.match(weight):
            raise click.BadParameter(f"{part!r} is not a model with a weight such as qwen-7b=90, or without one.")
        if name in found:
            raise click.BadParameter(f"{name!r} is there twice.")
        found[name] = int(weight)
    return found


def _names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[str]:
    names = _parts(values)
    if not all(names):
        raise click.BadParameter("A name is empty.")
    return names


@click.group(short_help="Give models other names, with splits and fallbacks.")
def route() -> None:
    """Give models other names, split their requests, and name fallbacks.

    A route says which models serve the requests of a name that clients send. Requests to the OpenAI-compatible address
    obey it. FastChat's own routes, such as /get_worker_address, do not.

    \b
    An alias:
        controller route set gpt-small --to qwen-7b
    A tenth of the requests for a new version:
        controller route set gpt-small --to qwen-7b=90,qwen-7b-next=10
    All requests for the new version, and a smaller model if it has no worker:
        controller route set gpt-small --to qwen-7b-next --fallback qwen-1b

    \b
    Show the routes, and remove one:
        controller route list
        controller route remove gpt-small
    """


@route.command("set")
@click.argument("name", shell_complete=complete_route)
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    metavar="MODEL[=WEIGHT],...",
    callback=_targets,
    shell_complete=complete_models,
    help="The models that serve the requests, split by their weights. A weight is a whole number, by default 1. With "
    "0, a model gets no requests.",
)
@click.option(
    "--fallback",
    "fallbacks",
    multiple=True,
    metavar="MODEL,...",
    callback=_names,
    shell_complete=complete_models,
    help="The models to try when no target has a live worker, in this order.",
)
@connects
def set_(name: str, targets: dict[str, int], fallbacks: list[str], controller: Controller) -> None:
    """Set which models serve the requests of NAME. This replaces an earlier route of NAME.

    All replicas use the route when the command ends. If a target has no live worker, the other targets share its
    requests by their weights. If none has one, the fallbacks are tried.

    Targets and fallbacks are served models, never other routes. A route may have the name of a served model. Then this
    model gets requests only if it is a target, too:

    \b
        controller route set qwen-7b --to qwen-7b=95,qwen-7b-next=5

    A name with a comma can be set by HTTP only: POST /set_model_route.
    """
    from controller.cli.routes import set_route  # imported late, so that --help stays fast

    done, warning = run(set_route(controller, name, targets, fallbacks))
    click.echo(done)
    if warning:
        click.echo(warning, err=True)


@route.command("list")
@as_json
@no_color
@connects
def list_routes(as_json: bool, controller: Controller) -> None:
    """Show the routes as a table, and which of their models have no live worker now."""
    from controller.cli.routes import show_routes  # imported late, so that --help stays fast

    run(show_routes(controller, as_json))


@route.command()
@click.argument("name", shell_complete=complete_route)
@connects
def remove(name: str, controller: Controller) -> None:
    """Remove the route of NAME. No replica uses it when the command ends."""
    from controller.cli.routes import remove_route  # imported late, so that --help stays fast

    click.echo(run(remove_route(controller, name)))
