"""`--help` of all commands."""

from collections.abc import Iterator

import click
import pytest

from controller.cli.main import SECTIONS, main
from tests.cli.conftest import FakeController


def test_each_command_stands_in_one_section_of_the_help(fake: FakeController) -> None:
    named = [str(each.name) for commands in SECTIONS.values() for each in commands]
    assert sorted(named) == sorted(main.commands)
    text = fake.run("--help").stdout
    for title, commands in SECTIONS.items():
        assert f"{title}:\n" in text
        for each in commands:
            assert f"\n  {each.name} " in text
    assert "..." not in text.partition("Run a controller")[2], "no description is cut"


def all_commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, (*prefix, name))


@pytest.mark.parametrize("command", [(), *all_commands(main)], ids=" ".join)
def test_help_fits_80_columns(fake: FakeController, command: tuple[str, ...]) -> None:
    ran = fake.run(*command, "--help", COLUMNS="80")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert [line for line in ran.stdout.splitlines() if len(line) > 80] == []
