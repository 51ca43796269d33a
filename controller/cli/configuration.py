"""The command `controller config`: the effective settings of `controller serve`, and where each comes from."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from click.core import ParameterSource
from rich.console import Console, RenderableType

from controller.cli.environment import warnings_of
from controller.cli.tables import Column, cell, create_console, fit_table, print_json
from controller.cli.text import printable
from controller.settings import GROUPS, all_settings
from controller.settings.declaration import environment_variable, environment_variables, flag

_HIDDEN: Final = "********"
_COLUMNS: Final = (
    Column("setting"),
    Column("value", wraps=True, breaks=True),
    Column("from", wraps=True, breaks=True),
)


class Effective(NamedTuple):
    """A setting with its effective value, and where the value comes from: "default", a flag or a variable."""

    setting: "Field[Any]"
    value: object
    source: str


def effective_settings(context: click.Context, values: Mapping[str, Any], replaced: Sequence[str]) -> list[Effective]:
    """Return all settings.

    values: by name of the setting, with those of deprecated flags in their places.
    replaced: names of the settings whose value is that of a deprecated flag.
    """
    return [Effective(setting, values[setting.name], _source(context, setting, replaced)) for setting in all_settings()]


def _source(context: click.Context, setting: "Field[Any]", replaced: Sequence[str]) -> str:
    if setting.name in replaced:
        return f"{flag(setting.metadata['old_name'])} (deprecated)"
    source = context.get_parameter_source(setting.name)
    if source is ParameterSource.COMMANDLINE:
        return flag(setting.name)
    if source is ParameterSource.ENVIRONMENT:
        return next(name for name in environment_variables(setting) if os.environ.get(name))
    return "default"


def show_settings(effective: Sequence[Effective], problem: str, changed: bool, as_json: bool) -> None:
    """Print the settings.

    problem: why `controller serve` would not start with them. "" if it would.
    changed: show only the settings whose values differ from the defaults.
    """
    shown = [each for each in effective if each.source != "default" or not changed]
    warnings = warnings_of(os.environ)
    if as_json:
        settings = [
            {
                "name": each.setting.name,
                "flag": None if each.setting.metadata["secret"] else flag(each.setting.name),
                "variable": environment_variable(each.setting.name),
                "value": json_value(each),
                "source": each.source,
            }
            for each in shown
        ]
        print_json({"settings": settings, "warnings": warnings, "problem": problem or None})
        return
    console = create_console()
    console.print(settings_table(shown, console))
    for warning in warnings:
        click.echo(f"Warning: {printable(warning)}", err=True)


def settings_table(effective: Sequence[Effective], console: Console) -> RenderableType:
    """Return a table with one row for each setting, in the order of `controller serve --help`."""
    rows = []
    for group in GROUPS:
        names = {setting.name for setting in fields(group)}
        for each in effective:
            if each.setting.name in names:
                is_default = each.source == "default"
                value = json_value(each)
                shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
                rows.append(
                    {
                        "setting": cell(each.setting.name, console.encoding, "" if is_default else "bold"),
                        "value": cell(shown, console.encoding, "" if is_default else "bold"),
                        "from": cell(each.source, console.encoding, "dim" if is_default else "green"),
                    }
                )
    return fit_table("Settings of `controller serve`", _COLUMNS, 3, rows, console)


def json_value(effective: Effective) -> object:
    """Return a value for people or for JSON. Secrets, and passwords in URLs, are hidden."""
    setting, value = effective.setting, effective.value
    if value is not None and setting.metadata["secret"]:
        return _HIDDEN if value else value
    if isinstance(value, Path):
        return os.fsencode(value).decode(errors="replace")
    if isinstance(value, str):
        return without_passwords(value) if not setting.repr else value
    return value


def without_passwords(urls: str) -> str:
    """Return URLs, separated with commas, without their user names, passwords and tokens.

    A password may have any character in it, so all up to the last @ of a URL is hidden.
    """
    shown = [re.sub(r"^([a-z0-9+]*://)?.*@", rf"\1{_HIDDEN}@", url) for url in re.split(r",(?=[a-z0-9+]+://)", urls)]
    return re.sub(r"(?i)(password=)[^&,]*", rf"\g<1>{_HIDDEN}", ",".join(shown))
