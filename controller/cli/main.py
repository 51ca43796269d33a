"""The command `controller`."""

import asyncio

import click

from controller import __version__
from controller.cli.serve import serve
from controller.domain.errors import ControllerError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="controller")
def main() -> None:
    """A highly available controller for LLM workers. It replaces FastChat's controller.

    \b
    Start a controller with an embedded store:
        controller serve
    Start FastChat's workers and servers with its address:
        python -m fastchat.serve.model_worker --controller-address http://localhost:21001 ...
    Show the live workers:
        controller workers
    """


main.add_command(serve)


@main.command()
@click.option(
    "--controller-address",
    default="http://localhost:21001",
    show_default=True,
    envvar="CONTROLLER_ADDRESS",
    show_envvar=True,
    help="Address of the controller.",
)
def workers(controller_address: str) -> None:
    """Show the live workers of a running controller as a table."""
    from controller.cli.workers import show_workers  # imported late, so that --help stays fast

    try:
        asyncio.run(show_workers(controller_address))
    except ControllerError as error:
        raise click.ClickException(str(error)) from error
