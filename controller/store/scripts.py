"""Loads the Lua scripts.

The scripts lie in folders by subject. The name of a script is the name of its file, without the folder.

A line `--- @include "name"` stands for the file of that name below `include/`. Each included file is inserted once,
after its own includes.

Redis creates all functions of a script each time that it runs, which takes a good part of a short script's time. So
`--- @include "name" when called` inserts a function that creates the included one, and what that needs, when it is
called for the first time. It is for functions that most runs do not call.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_INCLUDE: Final = re.compile(r'^--- @include "(\w+)"( when called)?\n', re.MULTILINE)
# Within `create`, the name is that of the included function. Outside, it is that of the variable that others call.
_WHEN_CALLED: Final = """\
local function {name}(...)
local create = function()
{text}return {name}
end
{name} = create()
return {name}(...)
end
"""
_HEADER: Final = re.compile(r"\A--\[\[.*?\]\]\n", re.DOTALL)
_INCLUDE_FOLDER: Final = "include"


def folder() -> Traversable:
    """Return the folder of the scripts: inside an installed package, or next to the package in a checkout."""
    packaged = files("controller") / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lua"


def names() -> list[str]:
    """Return the names of all scripts, which are the names of the registry's methods."""
    return sorted(script_files())


@cache
def script_files() -> dict[str, Traversable]:
    """Return the files of all scripts by name."""
    subjects = [entry for entry in folder().iterdir() if entry.is_dir() and entry.name != _INCLUDE_FOLDER]
    return _by_name(file for subject in subjects for file in _lua_files(subject))


@cache
def include_files() -> dict[str, Traversable]:
    """Return the files of all includes by name."""
    return _by_name(_lua_files(folder() / _INCLUDE_FOLDER))


@cache
def source(name: str) -> str:
    """Return the text of a script as Redis gets it: the included functions, then the script, without the headers."""
    return _put_together(_text(script_files()[name]), frozenset())


def _by_name(found: Iterable[Traversable]) -> dict[str, Traversable]:
    by_name: dict[str, Traversable] = {}
    for file in found:
        name = file.name.removesuffix(".lua")
        if name in by_name:
            raise ValueError(f"Two files in {folder()} are named {file.name}. Rename one of them.")
        by_name[name] = file
    return by_name


def _lua_files(directory: Traversable) -> Iterator[Traversable]:
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _lua_files(entry)
        elif entry.name.endswith(".lua"):
            yield entry


def _text(file: Traversable) -> str:
    return _HEADER.sub("", file.read_text(encoding="utf-8"))


@cache
def _include(name: str) -> str:
    return _text(include_files()[name])


def _put_together(text: str, known: frozenset[str]) -> str:
    """Return a text after all that it includes. Names in `known` are inserted already."""
    order = _in_order(text, ())
    at_once = _at_once(text) - known
    when_called = {name for part in (text, *map(_include, at_once)) for name, later in _INCLUDE.findall(part) if later}
    known |= at_once
    parts = []
    for name in order:
        if name in at_once:
            parts.append(_INCLUDE.sub("", _include(name)))
        elif name in when_called - known:
            parts.append(_WHEN_CALLED.format(name=name, text=_put_together(_include(name), known)))
            known |= {name}
    return "".join([*parts, _INCLUDE.sub("", text)])


def _at_once(text: str) -> frozenset[str]:
    """Return the names of all includes, direct and indirect, that a text needs before it is called."""
    names = {name for name, when_called in _INCLUDE.findall(text) if not when_called}
    return frozenset(names).union(*(_at_once(_include(name)) for name in names))


def _in_order(text: str, within: tuple[str, ...]) -> list[str]:
    """Return the names of all includes of a text, each after its own includes."""
    order: dict[str, None] = {}
    for name, _ in _INCLUDE.findall(text):
        if name in within:
            raise ValueError(f"The include {name}.lua includes itself, by way of {' and '.join(within)}.")
        order.update(dict.fromkeys([*_in_order(_include(name), (*within, name)), name]))
    return list(order)
