"""Loads the Lua scripts.

The scripts lie in folders by subject. The name of a script is the name of its file, without the folder.

A line `--- @include "name"` stands for the file of that name below `include/`. Each included file is inserted once,
after its own includes. The file constants.lua has numbers instead of a function. The loader replaces their names by the
numbers.

Redis creates all functions of a script each time that it runs, which takes a good part of a short script's time. So
a line `--- @include "name" when called` is for a function that most runs do not call. The function, and what it needs,
is created when it is called for the first time. All such functions of a script are branches of one function,
when_called(), and a call `name(...)` becomes `when_called("name")(...)`.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

_INCLUDE: Final = re.compile(r'^--- @include "(\w+)"( when called)?\n', re.MULTILINE)
_DECLARATION: Final = "local when_called\n"  # before all functions, which may call it
_WHEN_CALLED: Final = """\
local created = {{}}
when_called = function(name)
if created[name] then
return created[name]
{branches}end
return created[name]
end
"""
_BRANCH: Final = """\
elseif name == "{name}" then
{text}created.{name} = {name}
"""
_HEADER: Final = re.compile(r"\A--\[\[.*?\]\]\n", re.DOTALL)
_INCLUDE_FOLDER: Final = "include"
_CONSTANTS: Final = "constants"
_CONSTANT: Final = re.compile(r"^local ([A-Z_]+) = (\S+)$", re.MULTILINE)


def folder() -> Traversable:
    """Return the folder of the scripts: inside an installed package, or next to the package in a checkout."""
    packaged = files("controller") / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "lua"


def names() -> list[str]:
    """Return the names of all scripts. All but those of dispatch methods are names of the registry's methods."""
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
    return _replace_constants(_put_together(_text(script_files()[name])))


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


def _put_together(text: str) -> str:
    """Return a text after all that it includes."""
    order, at_once = _in_order(text), _at_once(text)
    when_called = {name for part in (text, *map(_include, order)) for name, later in _INCLUDE.findall(part) if later}
    parts = [_resolve(_include(name), at_once) for name in order if name in at_once]
    branches = []
    for name in order:
        if name in when_called - at_once:
            known = at_once | _at_once(_include(name)) | {name}
            created = [_resolve(_include(each), known) for each in order if each in known - at_once]
            branches.append(_BRANCH.format(name=name, text="".join(created)))
    if branches:
        parts = [_DECLARATION, *parts, _WHEN_CALLED.format(branches="".join(branches))]
    return "".join([*parts, _resolve(text, at_once)])


def _replace_constants(text: str) -> str:
    """Replace the names of constants by their numbers. A local variable would cost time whenever a script runs."""
    if _CONSTANTS not in include_files():
        return text
    numbers = dict(_CONSTANT.findall(_include(_CONSTANTS)))
    text = text.replace(_include(_CONSTANTS), "")
    return re.sub(rf"\b({'|'.join(numbers)})\b", lambda name: numbers[name[0]], text)


def _resolve(text: str, known: frozenset[str]) -> str:
    """Return a text without its include lines. It gets the functions that are not in `known` from when_called()."""
    for name, later in _INCLUDE.findall(text):
        if later and name not in known:
            text = re.sub(rf"\b{name}\(", f'when_called("{name}")(', text)
    return _INCLUDE.sub("", text)


def _at_once(text: str) -> frozenset[str]:
    """Return the names of all includes, direct and indirect, that a text needs before it is called."""
    names = {name for name, when_called in _INCLUDE.findall(text) if not when_called}
    return frozenset(names).union(*(_at_once(_include(name)) for name in names))


def _in_order(text: str, within: tuple[str, ...] = ()) -> list[str]:
    """Return the names of all includes of a text, each after its own includes."""
    order: dict[str, None] = {}
    for name, _ in _INCLUDE.findall(text):
        if name in within:
            raise ValueError(f"The include {name}.lua includes itself, by way of {' and '.join(within)}.")
        order.update(dict.fromkeys([*_in_order(_include(name), (*within, name)), name]))
    return list(order)
