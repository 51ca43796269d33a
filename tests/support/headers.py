"""Parses the headers of the Lua files."""

import re
from pathlib import Path
from typing import NamedTuple

from controller.store import scripts


class Header(NamedTuple):
    """The header of a script.

    keys: the part of the key's name in brackets or "", type, and "r", "w" or "rw", by kind of key.
    arguments: the names of the arguments that are not of an item, by number.
    first_of_group, group: the number of the first argument of the items, and the names of the arguments of an item.
    """

    purpose: str
    keys: dict[str, tuple[str, str, str]]
    input: str
    arguments: dict[int, str]
    first_of_group: int | None
    group: list[str]
    output: str


def header_of(path: Path) -> Header:
    """Return the header of a script."""
    text = _parts(path)[0]
    purpose, _, rest = text.partition("\n  Keys:\n")
    keys, _, rest = rest.partition("\n  Input:\n")
    inputs, _, output = rest.partition("\n  Output:\n")
    form = re.compile(r"    (\w+)(?::<(\w+)>)? +(HASH|SET|STREAM|STRING|ZSET) +(r|w|rw)")
    rows = [form.fullmatch(row) for row in keys.splitlines()]
    assert all(rows), f"a row of the keys of {path.name} has another form"
    arguments = {int(n): name for n, name in re.findall(r"^    ARGV\[(\d+)\] +(\w+): ", inputs, re.MULTILINE)}
    group = re.search(r"^    ARGV\[(\d+)…\] +for each \w+(?: \w+)*: (.*)$", inputs, re.MULTILINE)
    names = re.sub(r"^a registration \([^)]*\)(, then )?", "", group[2]).split(", ") if group else []
    for name in names if len(names) > 1 else []:
        assert re.search(rf"^                {name}: ", inputs, re.MULTILINE), f"{path.name} does not describe {name}"
    return Header(
        purpose,
        {row[1]: (row[2] or "", row[3], row[4]) for row in rows if row},
        inputs,
        arguments,
        int(group[1]) if group else None,
        [name for name in names if name],
        output,
    )


def listed_accesses() -> set[tuple[str, str, str]]:
    """Return the accesses that the headers of all scripts list: script, kind of key, and "r" or "w"."""
    return {
        (name, kind, mode)
        for name, file in scripts.script_files().items()
        for kind, (_, _, modes) in header_of(Path(str(file))).keys.items()
        for mode in modes
    }


def body_of(path: Path) -> str:
    """Return a Lua file without its header."""
    return _parts(path)[1]


def _parts(path: Path) -> tuple[str, str]:
    match = re.match(r"--\[\[\n(.*?)\]\]\n(.*)", path.read_text(), re.DOTALL)
    assert match, f"{path.name} does not begin with a header"
    return match[1], match[2]
