"""Loads the Lua scripts: finds their folder and puts the included functions in front of each.

A line `--- @include "name"` stands for the file `include/name.lua`. Every included file is taken once, after those
that it includes itself.

Where such a line is indented, it is within a function, and the file is put there, unless it is in front anyway. The
store makes all functions of a script anew whenever it runs: these, which are seldom needed, only when they are.
"""

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from textwrap import dedent
from typing import Final

_INCLUDE: Final = re.compile(r'^( *)--- @include "(\w+)"\n', re.MULTILINE)
_INCLUDES_WITHIN: Final = re.compile(r'(?:^ +--- @include "\w+"\n)+', re.MULTILINE)
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
    return _put_together(_text(folder() / f"{name}.lua"), frozenset())


def _text(file: Traversable) -> str:
    return _HEADER.sub("", file.read_text(encoding="utf-8"))


@cache
def _included(name: str) -> str:
    return _text(folder() / "include" / f"{name}.lua")


def _put_together(text: str, known: frozenset[str]) -> str:
    """The text and, in front of it, what it includes there and is not known yet."""
    order = _in_order(text, ())
    in_front = _in_front(text) - known
    known |= in_front
    return "".join(_fill_in(part, known) for part in [*(_included(name) for name in order if name in in_front), text])


def _fill_in(text: str, known: frozenset[str]) -> str:
    """The text with what it includes within functions."""
    filled = _INCLUDES_WITHIN.sub(lambda lines: _put_together(dedent(lines[0]), known), text)
    return _INCLUDE.sub("", filled)


def _in_order(text: str, within: tuple[str, ...]) -> list[str]:
    """All that the text includes, wherever, each after those that it includes itself."""
    order: dict[str, None] = {}
    for _, name in _INCLUDE.findall(text):
        if name in within:
            raise ValueError(f"lua/include/{name}.lua includes itself, by way of {' and '.join(within)}")
        order.update(dict.fromkeys([*_in_order(_included(name), (*within, name)), name]))
    return list(order)


def _in_front(text: str) -> frozenset[str]:
    """What the text includes in front of it, and what that does."""
    names = {name for indent, name in _INCLUDE.findall(text) if not indent}
    return frozenset(names).union(*(_in_front(_included(name)) for name in names))
