"""Copies of the program with a bug, to show that the checker finds it."""

import shutil
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]


class Change(NamedTuple):
    """A text to replace in a file of the copy."""

    file: str
    old: str
    new: str


def copy_program(directory: Path, *changes: Change) -> Path:
    """Copy the program into a directory, and change the copy. Return the directory, from which it can be run."""
    for name in ("controller", "lua"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        path = directory / change.file
        text = path.read_text(encoding="utf-8")
        assert text.count(change.old) == 1, f"{change.file} has changed: {change.old!r} is not in it once"
        path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return directory
