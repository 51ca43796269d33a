"""The command `controller agent`: runs next to an engine, registers it and sends its heartbeats."""

from typing import Final
from urllib.parse import urlsplit

import click

from controller.cli.engine_options import Description, describes_engine
from controller.cli.options import Duration
from controller.cli.text import printable
from controller.domain.engine_entry import AUTO, EngineEntry
from controller.domain.engine_status import EngineKind
from controller.domain.errors import ControllerError, InvalidInput
from controller.domain.worker import worker_name

_LEAST_INTERVAL: Final = 0.1  # seconds


@click.command(short_help="Represent an engine: register it, send heartbeats, drain it.")
@click.option("--engine", required=True, metavar="URL", help="URL of the engine, as seen from this process.")
@click.option(
    "--controller-address",
    "--controller",
    "controllers",
    default="http://localhost:21001",
    show_default=True,
    envvar="CONTROLLER_ADDRESS",
    show_envvar=True,
    metavar="URL[,URL...]",
    help="Controllers of one cluster. The first that responds is used. A token is written as http://name:token@host.",
)
@click.option(
    "--advertise",
    metavar="URL",
    help="URL of the engine, as seen from the controllers and clients. Default: the URL of --engine.",
)
@click.option(
    "--kind",
    type=click.Choice([AUTO, *map(str, EngineKind)]),
    default=AUTO,
    show_default=True,
    metavar="KIND",
    help=f"Kind of the engine: {', '.join(EngineKind)}, or auto to detect it.",
)
@describes_engine
@click.option(
    "--interval",
    type=Duration(is_positive=True),
    default="1s",
    show_default=True,
    help="Time between two heartbeats. The controllers' --engine-expiration must be several times as long.",
)
@click.option(
    "--deadline",
    type=Duration(),
    default="10m",
    show_default=True,
    help="How long the engine may take to finish its requests after SIGTERM.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="Log format. auto: text on a terminal, otherwise JSON.",
)
def agent(
    engine: str,
    controllers: str,
    advertise: str | None,
    kind: str,
    description: Description,
    interval: float,
    deadline: float,
    log_format: str,
) -> None:
    """Register an engine with a cluster of controllers, from a process next to it.

    The agent asks the engine for its state, registers it, and sends heartbeats with its queue. The controllers do not
    poll it. If an engine reports that it is not ready, it gets no further requests. If it does not respond, it gets
    none after two failed polls. If the whole machine dies, the engine expires after --engine-expiration of the
    controllers.

    \b
        controller agent --engine http://localhost:8000 \\
            --advertise http://gpu1:8000 \\
            --controller-address http://controller:21001

    SIGTERM and Ctrl-C drain the engine. The agent exits when the engine is idle, or at the deadline. A
    second signal ends the agent at once.

    \b
    Exit status:
        0  the engine is idle, or was not registered
        1  a value is wrong, or a file cannot be read
        2  the command line is wrong
        3  requests were left at the deadline, or at the second signal
    """
    from controller.security.parent_addresses import parse_parent  # imported late, so that --help stays fast
    from controller.server.agent import AgentOptions, run_agent

    if interval < _LEAST_INTERVAL:
        raise click.UsageError(f"--interval must be at least {_LEAST_INTERVAL:g} s.")
    try:
        url, name = _url("--engine", engine), _url("--advertise", advertise or engine)
        addresses = [parse_parent(text, "--controller-address") for text in controllers.split(",")]
        names, key = description.public_names(), description.read_key()
        entry = EngineEntry(kind, names, key, description.speed, description.capacity)
    except ControllerError as error:
        raise click.ClickException(printable(str(error))) from error
    if _is_local(name) and not all(_is_local(each.address) for each in addresses):
        raise click.UsageError(
            f"The controllers cannot reach {name}. Set --advertise to an address of the engine that they can reach."
        )
    end = run_agent(AgentOptions(url, name, entry, addresses, interval, deadline, log_format))
    raise SystemExit(end.value)


def _url(option: str, text: str) -> str:
    try:
        return worker_name(text)
    except InvalidInput as error:
        raise click.UsageError(printable(f"{option} {error.problem}.")) from error


def _is_local(url: str) -> bool:
    from controller.security.networks import is_loopback  # imported late, as above

    return is_loopback(urlsplit(url).hostname or "")
