"""The command `controller`."""

from typing import Any, Final

import click

from controller import __version__
from controller.cli import show
from controller.cli.agent import agent
from controller.cli.capacity import capacity
from controller.cli.completion import completion
from controller.cli.operate import drain, refresh, register, remove, resume, watch
from controller.cli.options import INTERRUPTED
from controller.cli.route import route
from controller.cli.serve import config, serve
from controller.cli.token import token

SECTIONS: Final = {
    "Run a controller": (serve, agent, config, completion, show.version),
    "See what happens": (
        show.top,
        show.workers,
        show.worker,
        show.models,
        show.engines,
        show.replicas,
        watch,
        show.explain,
        show.doctor,
    ),
    "Take workers in and out of service": (register, drain, resume, remove, refresh),
    "Try out and set up": (show.dispatch, capacity, route, token),
}


class _Group(click.Group):
    """A group whose `--help` lists the commands by purpose."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C before it has begun ends it without a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(each.name), each.get_short_help_str(limit)) for each in commands])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="controller")
def main() -> None:
    """A highly available controller for LLM workers. It replaces FastChat's controller.

    \b
    Start a controller with an embedded store:
        controller serve
    Start FastChat's workers and servers with its address:
        python -m fastchat.serve.model_worker \\
            --controller-address http://localhost:21001 ...
    Watch them, and find out what is wrong:
        controller top
        controller doctor
    Take a worker out of service, and wait until it is idle:
        controller drain 10.0.0.5:21002 --wait --deadline 10m --reason "driver"
    Name the controller for all commands:
        export CONTROLLER_ADDRESS=http://ops:TOKEN@controller.example:21001
    """


for _commands in SECTIONS.values():
    for _command in _commands:
        main.add_command(_command)
