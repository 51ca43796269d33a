"""The command `controller serve`. Its flags are generated from controller/settings/."""

import os
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from controller.cli.environment import warnings_of
from controller.cli.options import as_json, no_color
from controller.cli.text import printable
from controller.domain.errors import ControllerError
from controller.settings import GROUPS, Settings, all_settings
from controller.settings.declaration import environment_variable, environment_variables, flag


def _options(setting: "Field[Any]") -> Iterator[click.Option]:
    """Yield the command line option of a setting, and a hidden one for its deprecated name."""
    choices, text, old_name = (setting.metadata[key] for key in ("choices", "help", "old_name"))
    kind: Any
    if choices:
        kind = click.Choice([str(choice) for choice in choices])
    elif Path in get_args(setting.type):
        kind = click.Path(path_type=Path)
    else:
        kind = {int: click.INT, float: click.FLOAT}.get(type(setting.default), click.STRING)
    if setting.metadata["secret"]:
        yield _SecretOption(setting)
        return
    yield click.Option(
        [flag(setting.name)],
        type=click.BOOL if setting.default is False else kind,
        is_flag=setting.default is False,
        default=str(setting.default) if choices else setting.default,
        show_default=setting.default is not None and setting.default is not False,
        envvar=environment_variables(setting),
        show_envvar=True,
        help=text,
    )
    if old_name:
        yield click.Option([flag(old_name)], type=kind, hidden=True)


class _SecretOption(click.Option):
    """A setting that only the environment can set, because all users of a machine can read command lines.

    `--help` describes it with the name of its environment variable.
    """

    def __init__(self, setting: "Field[Any]") -> None:
        [self._variable] = environment_variables(setting)
        self._text = " ".join(setting.metadata["help"].split())
        super().__init__([flag(setting.name)], envvar=self._variable, expose_value=True, help=self._text)

    def add_to_parser(self, _parser: Any, _: click.Context) -> None:
        """Add no flag to the parser, which rejects it then."""

    def get_help_record(self, _: click.Context) -> tuple[str, str]:
        """Return the line for `--help`."""
        return self._variable, f"{self._text} Set it in the environment: it has no flag."


def _serve(**values: Any) -> None:
    """Run the controller: one process, or several identical ones on one port.

    Without --redis-url, the controller starts an embedded store and needs nothing else.

    \b
    Controllers that share one Redis are one cluster:
        controller serve --host 0.0.0.0 --redis-url redis://redis:6379
    """
    from controller.server.run import serve as run  # imported late, so that --help stays fast

    warnings = [
        f"{old_name} is deprecated and will be removed. Use {new_name} instead."
        for old_name, new_name in _replace_old_names(values)
    ]
    _reject_unused_files(values)
    try:
        run(Settings(**values), [*warnings, *warnings_of(os.environ)])
    except ControllerError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"The controller cannot run: {error}.") from error


def _config(**values: Any) -> None:
    """Show the settings that `controller serve` would have here, and where each comes from.

    Takes the same options as `controller serve`, and reads the same environment variables. Secrets, and passwords in
    URLs, are hidden. The exit status is 1 if `controller serve` would not start with these settings.

    \b
    See what a command line means, and what differs from the defaults:
        controller config --changed --redis-url redis://redis:6379 --replicas 4
    """
    from controller.cli.configuration import effective_settings, show_settings  # imported late, as above

    as_json, changed = values.pop("as_json"), values.pop("changed")
    context = click.get_current_context()
    before = dict(values)
    list(_replace_old_names(values))
    replaced = [name for name, value in values.items() if value != before[name]]
    problem = ""
    try:
        _reject_unused_files(values)
        Settings(**values)
    except (ControllerError, click.ClickException, OSError) as error:
        problem = str(error)
    show_settings(effective_settings(context, values, replaced), problem, changed, as_json)
    if problem:
        raise click.ClickException(printable(f"`controller serve` would not start: {problem}"))


def _replace_old_names(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the values of deprecated flags to their settings. Yield each deprecated name in use with the new name."""
    context = click.get_current_context()
    for setting in all_settings():
        old_name = setting.metadata["old_name"]
        if not old_name:
            continue
        value, source = values.pop(old_name), context.get_parameter_source(setting.name)
        if value is not None:
            if source is not ParameterSource.COMMANDLINE:
                values[setting.name] = value
            yield flag(old_name), flag(setting.name)
        elif source is ParameterSource.ENVIRONMENT:
            variable, *_ = environment_variables(setting)
            used = next(name for name in environment_variables(setting) if os.environ.get(name))
            if used == environment_variable(old_name):
                yield used, variable


def _reject_unused_files(values: dict[str, Any]) -> None:
    """Reject --ssl-keyfile and --ssl-certfile without --ssl: a user who sets them does not expect plain HTTP.

    Their environment variables are not rejected. They are FastChat's and may be set for other programs.
    """
    for name in ("ssl_keyfile", "ssl_certfile"):
        source = click.get_current_context().get_parameter_source(name)
        if not values["ssl"] and source is ParameterSource.COMMANDLINE:
            raise click.ClickException(f"{flag(name)} has no effect without --ssl. Add --ssl, or remove {flag(name)}.")


class _ServeCommand(click.Command):
    """A command whose `--help` lists the options by subject."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        for group in GROUPS:
            names = [setting.name for setting in fields(group)]
            with formatter.section(group.title):
                formatter.write_dl([record for name in names if (record := records.pop(name))])
        with formatter.section("Other options"):
            formatter.write_dl([record for record in records.values() if record])


serve = _ServeCommand(
    "serve",
    callback=_serve,
    params=[option for setting in all_settings() for option in _options(setting)],
    help=_serve.__doc__,
    short_help="Run the controller.",
)

config = _ServeCommand(
    "config",
    callback=_config,
    params=[option for setting in all_settings() for option in _options(setting)],
    help=_config.__doc__,
    short_help="Show the effective settings, and where each comes from.",
)
for _decorate in (
    no_color,
    as_json,
    click.option("--changed", is_flag=True, help="Leave out the settings that have their defaults."),
):
    _decorate(config)
