"""Shell completion: the command `controller completion`, and the names of workers, models and routes."""

import asyncio
import contextlib
import re
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from controller.cli.options import Controller

VARIABLE: Final = "_CONTROLLER_COMPLETE"
_TIMEOUT: Final = 1.0  # seconds that a key press may wait for the controller
# The shells insert a completed name into the command line as it is, so a name with other characters could run a
# program. The names come from the network.
_SAFE: Final = re.compile(r"[A-Za-z0-9._/:@%+,=][A-Za-z0-9._/:@%+,=-]*\Z")
_INSTALL: Final = {
    "bash": 'Add this line to ~/.bashrc:\n#     eval "$(controller completion bash)"',
    "zsh": 'Add this line to ~/.zshrc, below compinit:\n#     eval "$(controller completion zsh)"',
    "fish": "Run once:\n#     controller completion fish > ~/.config/fish/completions/controller.fish",
}
# bash splits words at colons: http://10.0.0.5:21002 becomes five. bash-completion has functions that join them. Without
# it, the colon is removed from COMP_WORDBREAKS, for all commands.
_BASH_COLONS: Final = """\
declare -F __ltrim_colon_completions >/dev/null || COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}
"""
# By the text in the script of click.
_BASH_REPLACEMENTS: Final = {
    "    local response\n": """\
    local response cur cword=$COMP_CWORD words=("${COMP_WORDS[@]}")
    if declare -F __ltrim_colon_completions >/dev/null; then
        _get_comp_words_by_ref -n : cur words cword
    fi
""",
    '"${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD': '"${words[*]}" COMP_CWORD=$cword',
    "    return 0\n": """\
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$cur"
    fi

    return 0
""",
}


@click.command(short_help="Print the completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options, workers, models and routes in a shell.

    \b
    Use it in bash, zsh or fish:
        eval "$(controller completion bash)"        in ~/.bashrc
        eval "$(controller completion zsh)"         in ~/.zshrc, below compinit
        controller completion fish > ~/.config/fish/completions/controller.fish

    The names of workers, models and routes come from the controller at CONTROLLER_ADDRESS, if it answers within a
    second.
    """
    from controller.cli.main import main  # imported late, because it imports this module

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"There is no completion for {shell}.")
    click.echo(f"# Completion of `controller` for {shell}. {_INSTALL[shell]}")
    source = kind(main, {}, "controller", VARIABLE).source()
    if shell == "bash":
        for part, replacement in _BASH_REPLACEMENTS.items():
            source = source.replace(part, replacement)
        click.echo(_BASH_COLONS, nl=False)
    click.echo(source)


def complete_worker(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Return the workers that begin with what was typed, with the scheme or without it."""
    names = {str(worker["worker_name"]) for worker in _workers(context)}
    if incomplete:
        names |= {name.partition("://")[2] for name in names}
    return _items(names, incomplete)


def complete_model(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Return the models that begin with what was typed."""
    return _items({str(model) for worker in _workers(context) for model in worker["model_names"]}, incomplete)


def complete_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Return the list that was typed, with each model that begins with its last part."""
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{item.value}") for item in complete_model(context, parameter, last)]


def complete_route(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Return the names with a route that begin with what was typed."""
    from controller.cli.api import request  # imported late, so that --help stays fast

    with contextlib.suppress(Exception):
        listed = asyncio.run(request(_controller(context), "/model_routes", "model_routes"))["model_routes"]
        return _items({str(route["model"]) for route in listed}, incomplete)
    return []


def _items(names: set[str], incomplete: str) -> list[CompletionItem[Any]]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete) and _SAFE.match(name)]


def _workers(context: click.Context) -> list[dict[str, Any]]:
    """Return the workers of the controller. If anything fails there are none: a key press must not print errors."""
    from controller.cli.workers import fetch_workers  # imported late, so that --help stays fast

    with contextlib.suppress(Exception):
        return asyncio.run(fetch_workers(_controller(context)))
    return []


def _controller(context: click.Context) -> Controller:
    return Controller(context.params.get("controller_address") or "http://localhost:21001", _TIMEOUT)
