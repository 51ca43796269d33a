"""The commands `controller token create`, `list` and `revoke`."""

import click

from controller.cli.options import Controller, as_json, connects, no_color, run


@click.group()
def token() -> None:
    """Create, list or revoke tokens of a running controller.

    A controller with tokens refuses requests without one. Tokens are for a plane: workers register and send heartbeats,
    clients request workers, and admins may do everything.

    \b
    Start the controller with an admin token, and create the others with it:
        export CONTROLLER_ADMIN_TOKENS=ops=$(openssl rand -hex 32)
        controller serve
        export TOKEN=${CONTROLLER_ADMIN_TOKENS#ops=}
        export CONTROLLER_ADDRESS=http://ops:$TOKEN@localhost:21001
        controller token create --plane worker --name gpu-rack-1

    \b
    FastChat's programs send a token that is in the address of the controller:
        python -m fastchat.serve.model_worker \\
            --controller-address http://gpu-rack-1:TOKEN@localhost:21001 ...
    """


@token.command()
@click.option("--plane", type=click.Choice(["worker", "client", "admin"]), required=True, help="What the token is for.")
@click.option("--name", required=True, help="Name of the token, which appears in logs.")
@click.option(
    "--workers",
    multiple=True,
    metavar="PATTERN",
    help="Workers that a worker token may speak for: '*.rack1.example', 10.0.1.0/24 or 10.0.1.7:21002-21009. Repeat "
    "for several.  [default: all]",
)
@click.option(
    "--models",
    multiple=True,
    metavar="PATTERN",
    help="Models that these workers may serve, such as 'vicuna-*'. Repeat for several.  [default: all]",
)
@connects
def create(plane: str, name: str, workers: tuple[str, ...], models: tuple[str, ...], controller: Controller) -> None:
    """Create a token and print it. It is shown only this once: Redis keeps its hash.

    All replicas know it when the command ends. In patterns of models, * stands for any characters and ? for one.
    """
    from controller.cli.tokens import create_token  # imported late, so that --help stays fast

    secret = run(
        create_token(controller, plane, name, workers, models),
        f"Interrupted. The token {name} may exist. Its secret is lost: use `controller token revoke {name}`.",
    )
    click.echo(secret)
    click.echo(
        f"This is the token {name}. It is not shown again. In an address: http://{name}:TOKEN@host:port", err=True
    )


@token.command("list")
@as_json
@no_color
@connects
def list_tokens(as_json: bool, controller: Controller) -> None:
    """Show the tokens as a table, without their secrets."""
    from controller.cli.tokens import show_tokens  # imported late, so that --help stays fast

    run(show_tokens(controller, as_json))


@token.command()
@click.argument("name")
@connects
def revoke(name: str, controller: Controller) -> None:
    """Revoke a token that was created with `controller token create`. All replicas refuse it when the command ends."""
    from controller.cli.tokens import revoke_token  # imported late, so that --help stays fast

    interrupted = f"Interrupted. The token {name} may have been revoked. `controller token list` shows the others."
    click.echo(run(revoke_token(controller, name), interrupted))
