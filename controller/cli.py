"""The street door: commands and flags."""

import asyncio
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from controller import __version__
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import ControllerError
from controller.settings import Settings, all_settings, environment_variables, flag

_PATHS = ("ssl_keyfile", "ssl_certfile", "redis_password_file", "data_dir")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="controller")
def main() -> None:
    """A controller cluster for LLM workers: FastChat's controller, with its state and its decisions in Redis.

    \b
    Start one, with a store of its own:
        controller serve
    Point FastChat's workers and servers at it, as at FastChat's own controller:
        python -m fastchat.serve.model_worker --controller-address http://localhost:21001 ...
    See who is there:
        controller workers
    """


def _option(setting: "Field[Any]") -> click.Option:
    """The command line option of a setting."""
    choices, text = setting.metadata["choices"], setting.metadata["help"]
    kind: Any
    if choices:
        kind = click.Choice([str(choice) for choice in choices])
    elif setting.name in _PATHS:
        kind = click.Path(path_type=Path)
    else:
        kind = {int: click.INT, float: click.FLOAT}.get(type(setting.default), click.STRING)
    return click.Option(
        [flag(setting.name)],
        type=click.BOOL if setting.default is False else kind,
        is_flag=setting.default is False,
        default=str(setting.default) if choices else setting.default,
        show_default=setting.default is not None and setting.default is not False,
        envvar=environment_variables(setting),
        show_envvar=True,
        help=text,
    )


def _with_settings(command: Callable[..., None]) -> click.Command:
    return click.Command(
        "serve",
        callback=command,
        params=[_option(setting) for setting in all_settings()],
        help=command.__doc__,
        short_help="Run the controller.",
    )


@main.add_command
@_with_settings
def serve(**values: Any) -> None:
    """Run the controller: one process, or several identical ones, on one port.

    Without --redis-url it starts a server of its own to keep the registry in, and needs nothing else.

    \b
    Several controllers that share one Redis are one cluster:
        controller serve --host 0.0.0.0 --redis-url redis://redis:6379
    """
    from controller.server import serve as run  # here, so that --help need not wait for uvicorn and the rest

    _refuse_idle_files(values)
    try:
        run(Settings(**{**values, "dispatch_method": DispatchMethod(values["dispatch_method"])}))
    except ControllerError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"The controller cannot run: {error}.") from error


def _refuse_idle_files(values: dict[str, Any]) -> None:
    """Refuse --ssl-keyfile and --ssl-certfile without --ssl: whoever gives them does not expect plain HTTP.

    As variables they may stand in the environment for others, as FastChat has it.
    """
    for name in ("ssl_keyfile", "ssl_certfile"):
        source = click.get_current_context().get_parameter_source(name)
        if not values["ssl"] and source is ParameterSource.COMMANDLINE:
            raise click.ClickException(f"{flag(name)} does nothing without --ssl. Add --ssl, or drop it.")


@main.command()
@click.option(
    "--controller-address",
    default="http://localhost:21001",
    show_default=True,
    envvar="CONTROLLER_ADDRESS",
    show_envvar=True,
    help="The controller to ask.",
)
def workers(controller_address: str) -> None:
    """Show the live workers of a running controller as a table."""
    from controller.console import show_workers  # here, as above

    try:
        asyncio.run(show_workers(controller_address))
    except ControllerError as error:
        raise click.ClickException(str(error)) from error
