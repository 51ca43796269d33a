"""Loads the Lua scripts: finds their folder and puts the included functions in front of each.

A line `--- @include "name"` stands for the file `include/name.lua`. Every included file is taken once, after those
that it includes itself.
"""

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_INCLUDE: Final = re.compile(r'^--- @include "(\w+)"\n', re.MULTILINE)
_HEADER: Final = re.compile(r"\A--\[\[.*?\]\]\n", re.DOTALL)


def folder() -> Traversable:
    """The folder of the scripts: inside an installed package, beside the package in a checkout."""
    packaged = files("controller") / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lua"


def names() -> list[str]:
    """The names of all scripts, which are the names of the registry's methods."""
    return sorted(entry.name.removesuffix(".lua") for entry in folder().iterdir() if entry.name.endswith(".lua"))


@cache
def source(name: str) -> str:
    """The text of a script as Redis gets it: the included functions, then the script, without their headers."""
    taken: dict[str, str] = {}
    body = _take(folder() / f"{name}.lua", taken, ())
    return "".join([*taken.values(), body])


def _take(file: Traversable, taken: dict[str, str], within: tuple[str, ...]) -> str:
    """The file's own text, after its includes were added to `taken`."""
    text = _HEADER.sub("", file.read_text(encoding="utf-8"))
    for included in _INCLUDE.findall(text):
        if included in within:
            raise ValueError(f"lua/include/{included}.lua includes itself, by way of {' and '.join(within)}")
        if included not in taken:
            part = _take(folder() / "include" / f"{included}.lua", taken, (*within, included))
            taken[included] = part
    return _INCLUDE.sub("", text)
