"""Tables on the terminal, which fit it."""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from controller.cli.text import printable

Row = Mapping[str, Text | str]

_GAP: Final = 2  # between two columns: the padding, and a space instead of a line
_LEAST: Final = 10  # characters of a column whose words are broken
PIPE_WIDTH: Final = 250
_MANY: Final = 500  # rows
TABLE_LINES: Final = 5  # of a table, besides its rows


class Column(NamedTuple):
    """A column of a table.

    right: its cells are justified to the right.
    wraps: its cells are wrapped between words.
    breaks: its words may be broken if the terminal has no room for them.
    shortens: the middle of its words may be left out if the terminal has no room for them, as in long names.
    """

    name: str
    right: bool = False
    wraps: bool = False
    breaks: bool = False
    shortens: bool = False


def create_console() -> Console:
    """Return a console for standard output. It prints characters that the encoding lacks as question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH  # in pipes and files, long lines must not be cut
    return console


def cell(text: str, encoding: str, style: str = "") -> Text:
    """Return a cell. Characters that are not printable, or that the encoding lacks, become question marks.

    This is done before rich computes the widths.
    """
    return Text(printable(text).encode(encoding, errors="replace").decode(encoding), style=style)


def fit_table(
    title: str,
    columns: Sequence[Column],
    required: int,
    rows: Sequence[Row],
    console: Console,
    *,
    is_live: bool = False,
) -> RenderableType:
    """Return a table with the columns that the console has room for. No word is broken if all have room.

    title: the text above it, which may come from the network.
    columns: from the most important one on. Where the terminal is too narrow, the last ones are left out.
    required: how many of them are left out only if the others would not fit either, with their words broken or
        shortened.
    is_live: the table is part of a screen that refreshes. Each row has one line, and what has no room is cut.
    """
    headings: Row = {column.name: column.name for column in columns}
    widths = {
        column.name: max(_width(column, row.get(column.name, "")) for row in [headings, *rows]) for column in columns
    }
    if console.width == PIPE_WIDTH and not console.is_terminal:
        console.width = max(console.width, _total(widths))  # in pipes and files, no column may be missing
    if len(rows) > _MANY and not console.options.ascii_only:
        full = {
            column.name: max(cell_len(str(row.get(column.name, ""))) for row in [headings, *rows]) for column in columns
        }
        if _total(full) <= console.width:
            return _LongTable(title, columns, rows, full)
    for number in range(len(columns), required - 1, -1):
        shown = {column.name: widths[column.name] for column in columns[:number]}
        if _total(shown) <= console.width:
            return _table(title, columns, rows, shown, console, is_broken=False, is_live=is_live)
    for number in range(required, 0, -1):
        shown = {
            column.name: min(_LEAST, widths[column.name]) if column.breaks or column.shortens else widths[column.name]
            for column in columns[:number]
        }
        if _total(shown) <= console.width:
            break
    rows = _shortened(rows, columns[: len(shown)], widths, shown, console)
    return _table(title, columns, rows, shown, console, is_broken=True, is_live=is_live)


def _shortened(
    rows: Sequence[Row],
    columns: Sequence[Column],
    wanted: Mapping[str, int],
    least: Mapping[str, int],
    console: Console,
) -> list[Row]:
    """Return rows in which the words of columns that may be shortened fit the console.

    The columns share the room that is left, the ones that need little first. All that may be broken take part.
    """
    flexible = sorted((wanted[column.name] - least[column.name], column.name) for column in columns)
    room = max(0, console.width - _total(least))
    widths = dict(least)
    needing = [(need, name) for need, name in flexible if need]
    for number, (need, name) in enumerate(needing):
        given = min(need, room // (len(needing) - number))
        widths[name] += given
        room -= given
    shortening = [column for column in columns if column.shortens]
    return [
        {**row, **{each.name: _shorten(row.get(each.name, ""), each, widths, console) for each in shortening}}
        for row in rows
    ]


def _shorten(content: Text | str, column: Column, widths: Mapping[str, int], console: Console) -> Text | str:
    """Return a cell of a column in which the middle of long words is left out. Without wrapping, it is one word."""
    text = str(content)
    words = text.split(" ") if column.wraps else [text]
    short = " ".join(_without_middle(word, widths[column.name], console.encoding) for word in words)
    if short == text:
        return content
    return Text(short, style=content.style if isinstance(content, Text) else "")


def _without_middle(word: str, width: int, encoding: str) -> str:
    """Return a word in at most `width` cells of the terminal."""
    if cell_len(word) <= width:
        return word
    ellipsis = "\u2026" if _can_encode("\u2026", encoding) else "..."
    kept = max(2, width - len(ellipsis))
    begin, end = word, word
    while cell_len(begin) > kept // 2:
        begin = begin[:-1]
    while cell_len(end) > kept - kept // 2:
        end = end[1:]
    return f"{begin}{ellipsis}{end}"


def _can_encode(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


class _LongTable:
    """A table of many rows with room for all columns. It looks like a Table of rich, which takes a second for 1,000."""

    def __init__(self, title: str, columns: Sequence[Column], rows: Sequence[Row], widths: Mapping[str, int]) -> None:
        self._title = title
        self._columns = columns
        self._rows = rows
        self._widths = widths

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> RenderResult:
        total = _total(self._widths)
        yield Segment(str(cell(self._title, console.encoding)).ljust(total), console.get_style("table.title"))
        yield Segment(f"\n{' ' * total}\n")
        yield from self._line({column.name: Text(column.name, "table.header") for column in self._columns}, console)
        yield Segment(f" {SIMPLE_HEAD.head_row_horizontal * (total - 2)} \n")
        for row in self._rows:
            yield from self._line(row, console)
        yield Segment(f"{' ' * total}\n")

    def _line(self, row: Row, console: Console) -> RenderResult:
        yield Segment(" ")
        for column in self._columns:
            content = row.get(column.name, "")
            text = str(content)
            padding = " " * (self._widths[column.name] - cell_len(text))
            style = console.get_style(content.style) if isinstance(content, Text) and content.style else None
            yield Segment(f"{padding}{text}" if column.right else f"{text}{padding}", style)
            yield Segment("  ")
        yield Segment("\n")


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * len(widths) + 1


def _width(column: Column, content: Text | str) -> int:
    """Return the width that a cell needs, so that no word in it is broken."""
    words = str(content).split() if column.wraps else [str(content)]
    return max(map(cell_len, words), default=0)


def _table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    widths: Mapping[str, int],
    console: Console,
    *,
    is_broken: bool,
    is_live: bool,
) -> Table:
    """Return a table with the columns for which `widths` has a minimum."""
    shown_title = cell(title, console.encoding)
    least = min(console.width, shown_title.cell_len)  # a title is as wide as its table at most
    table = Table(title=shown_title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=least)
    for column in columns[: len(widths)]:
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="ellipsis" if is_live else "fold",
            no_wrap=is_live or not (column.wraps or (is_broken and (column.breaks or column.shortens))),
            min_width=widths[column.name],
        )
    for row in rows:
        table.add_row(*(row.get(name, "") for name in widths))
    notes = []
    if left_out := [column.name for column in columns[len(widths) :]]:
        notes.append(f"Not shown for lack of space: {', '.join(left_out)}.")
    if is_broken and any(column.shortens for column in columns):
        notes.append("Long names are shortened.")
    if notes and not is_live:
        table.caption = f"{' '.join(notes)} `| cat` shows everything."
        table.caption_justify = "left"
    return table


def bar(share: float, width: int, encoding: str) -> str:
    """Return a bar of `width` characters at most. share: from 0 to 1."""
    full = "\u2588" if _can_encode("\u2588", encoding) else "#"
    length = round(width * min(max(share, 0.0), 1.0))
    return full * (max(length, 1) if share > 0 else 0)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON. Characters outside of ASCII are escaped, so nothing in it can change the terminal."""
    click.echo(json.dumps(value, indent=indent))
