"""The command `controller`."""

import click

from controller import __version__
from controller.cli.capacity import capacity
from controller.cli.operate import drain, refresh, remove, resume, watch
from controller.cli.options import controller_address, run
from controller.cli.serve import serve
from controller.cli.token import token


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="controller")
def main() -> None:
    """A highly available controller for LLM workers. It replaces FastChat's controller.

    \b
    Start a controller with an embedded store:
        controller serve
    Start FastChat's workers and servers with its address:
        python -m fastchat.serve.model_worker --controller-address http://localhost:21001 ...
    Show the live workers, and what happens to them:
        controller workers
        controller watch
    Take a worker out of service, and wait until it is idle:
        controller drain http://10.0.0.5:21002 --wait --reason "new driver"
    Set how many requests they run at once:
        controller capacity --help
    Let only those in who have a token:
        controller token --help
    """


main.add_command(serve)
main.add_command(capacity)
main.add_command(token)
for command in (drain, resume, remove, refresh, watch):
    main.add_command(command)


@main.command()
@controller_address
def workers(controller_address: str) -> None:
    """Show the live workers of a running controller as a table.

    The column slots has the number of requests that a worker runs at once. "5" is what the worker reports, and "5 set"
    is configured. It is empty if the number is unknown. A terminal that is too narrow does not show the last columns.
    """
    from controller.cli.workers import show_workers  # imported late, so that --help stays fast

    run(show_workers(controller_address))
