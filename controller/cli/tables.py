"""Tables that fit the terminal."""

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from controller.cli.short_names import short_names
from controller.cli.text import printable

Row = Mapping[str, Text | str]

_GAP: Final = 2  # between two columns: the padding, and a space instead of a line
_LEAST: Final = 10  # characters of a column whose words are broken
_FIRST_SHARE: Final = 60  # characters that the first column gets before the others share the rest
_USUAL: Final = 40  # characters of a column with longer names, if the other columns need the room
_WRAPPED: Final = 100  # characters of a column that wraps, in a pipe or a file
PIPE_WIDTH: Final = 250
_MANY: Final = 500  # rows
TABLE_LINES: Final = 5  # of a table, besides its rows


class Column(NamedTuple):
    """A column of a table.

    right: its cells are justified to the right.
    wraps: its cells are wrapped between words.
    breaks: its words may be broken if the terminal has no room for them.
    shortens: a part of its words may be left out if the terminal has no room for them, as in long names.
    prefix: what may be left out, in all cells at once, if the terminal has no room.
    """

    name: str
    right: bool = False
    wraps: bool = False
    breaks: bool = False
    shortens: bool = False
    prefix: str = ""


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
    required: how many of them are left out last. Before that, their words are broken or shortened.
    is_live: the table is part of a screen that refreshes. Each row has one line, and what has no room is cut.
    """
    widths = _widths(columns, rows, _width)
    full = _widths(columns, rows, _full_width)
    if console.width == PIPE_WIDTH and not console.is_terminal:  # in pipes and files, no column may be missing
        wrapped = (column.name for column in columns if column.wraps)
        widths.update({name: max(widths[name], min(full[name], _WRAPPED)) for name in wrapped})
        console.width = max(console.width, _total(widths))
    if len(rows) > _MANY and not console.options.ascii_only and _total(full) <= console.width:
        return _LongTable(title, columns, rows, full)
    if _total(widths) > console.width:
        columns, required = _without_empty(columns, required, rows)
    for number in range(len(columns), required - 1, -1):
        shown = {column.name: widths[column.name] for column in columns[:number]}
        if _total(shown) <= console.width:
            shown = _with_the_rest(shown, columns, full, console) if is_live else shown
            return _table(title, columns, rows, shown, console, is_fixed=is_live, is_live=is_live)
    rows = _without_prefixes(columns, rows)
    widths, full = _widths(columns, rows, _width), _widths(columns, rows, _full_width)
    # A single very long name must not hide the columns that have room beside names of usual length.
    lowered = {column.name: _USUAL for column in columns if column.shortens and widths[column.name] > _FIRST_SHARE}
    shown = _first_fitting(columns, range(len(columns), required - 1, -1) if lowered else (), widths | lowered, console)
    if not shown:
        least = {
            column.name: min(_LEAST, widths[column.name]) for column in columns if column.breaks or column.shortens
        }
        narrow = widths | least
        shown = _first_fitting(columns, range(required, 0, -1), narrow, console) or {
            columns[0].name: narrow[columns[0].name]
        }
    shown = _with_the_rest(_shared(shown, widths, console), columns, full, console)
    short = _shortened(rows, columns[: len(shown)], shown, console)
    return _table(title, columns, short, shown, console, is_fixed=True, is_live=is_live, is_shortened=short != rows)


def _widths(
    columns: Sequence[Column], rows: Sequence[Row], width: Callable[[Column, Text | str], int]
) -> dict[str, int]:
    """Return the width of each column in which all of its cells and its heading have room."""
    return {
        column.name: max(cell_len(column.name), *(width(column, row.get(column.name, "")) for row in rows), 0)
        for column in columns
    }


def _first_fitting(
    columns: Sequence[Column], numbers: Sequence[int], widths: Mapping[str, int], console: Console
) -> dict[str, int]:
    """Return the widths of the first columns, for the first number of them that fits. {} if none does."""
    for number in numbers:
        shown = {column.name: widths[column.name] for column in columns[:number]}
        if _total(shown) <= console.width:
            return shown
    return {}


def _without_empty(columns: Sequence[Column], required: int, rows: Sequence[Row]) -> tuple[Sequence[Column], int]:
    """Remove columns that are empty in all rows. Return the others, and how many of them are required."""
    if not rows:
        return columns, required
    has_content = [any(str(row.get(column.name, "")) for row in rows) for column in columns]
    kept = [column for column, is_kept in zip(columns, has_content, strict=True) if is_kept]
    return kept, sum(has_content[:required])


def _without_prefixes(columns: Sequence[Column], rows: Sequence[Row]) -> Sequence[Row]:
    """Return rows without the prefix of a column, where all cells of the column have it."""
    for column in columns:
        cells = [row.get(column.name, "") for row in rows]
        if column.prefix and all(str(each).startswith(column.prefix) for each in cells):
            short = [_replaced(each, str(each).removeprefix(column.prefix)) for each in cells]
            rows = [{**row, column.name: each} for row, each in zip(rows, short, strict=True)]
    return rows


def _replaced(content: Text | str, text: str) -> Text:
    """Return a cell with another text and the same style."""
    return Text(text, style=content.style if isinstance(content, Text) else "")


def _shared(least: Mapping[str, int], wanted: Mapping[str, int], console: Console) -> dict[str, int]:
    """Divide the room that the least widths leave on the console.

    The first column gets up to _FIRST_SHARE, because it says what a row is about. The others follow, the ones that need
    little first.
    """
    widths = dict(least)
    room = max(0, console.width - _total(least))
    first = next(iter(least))
    given = min(room, max(0, min(wanted[first], _FIRST_SHARE) - least[first]))
    widths[first] += given
    room -= given
    needing = sorted((wanted[name] - width, name) for name, width in widths.items() if wanted[name] > width)
    for number, (need, name) in enumerate(needing):
        given = min(need, room // (len(needing) - number))
        widths[name] += given
        room -= given
    return widths


def _with_the_rest(
    widths: Mapping[str, int], columns: Sequence[Column], full: Mapping[str, int], console: Console
) -> dict[str, int]:
    """Give the room that is left to the columns that wrap, up to the width that they need."""
    grown = dict(widths)
    for column in columns[: len(widths)]:
        if column.wraps:
            room = max(0, console.width - _total(grown))
            grown[column.name] += min(room, full[column.name] - grown[column.name])
    return grown


def _shortened(
    rows: Sequence[Row], columns: Sequence[Column], widths: Mapping[str, int], console: Console
) -> Sequence[Row]:
    """Return rows in which the words of columns that may be shortened have room. Different words stay different."""
    ellipsis = "\u2026" if _can_encode("\u2026", console.encoding) else "..."
    for column in columns:
        if not column.shortens:
            continue
        cells = [row.get(column.name, "") for row in rows]
        # Without wrapping, a cell is one word. With it, a cell is a list, and a comma follows all words but the last.
        words = [str(each).split(" ") if column.wraps else [str(each)] for each in cells]
        comma = int(column.wraps)
        names = {word.removesuffix(",") if column.wraps else word for each in words for word in each}
        if max(map(cell_len, names), default=0) + comma <= widths[column.name]:
            continue
        short = short_names(names, widths[column.name] - comma, ellipsis)
        texts = [
            " ".join(f"{short[word[:-1]]}," if comma and word.endswith(",") else short[word] for word in each)
            for each in words
        ]
        rows = [
            {**row, column.name: _replaced(each, text) if text != str(each) else each}
            for row, each, text in zip(rows, cells, texts, strict=True)
        ]
    return rows


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


def _full_width(_: Column, content: Text | str) -> int:
    return cell_len(str(content))


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
    is_fixed: bool,
    is_live: bool,
    is_shortened: bool = False,
) -> Table:
    """Return a table with the columns that have a width. is_fixed: the widths are exact. Otherwise, they are minima."""
    shown_title = cell(title, console.encoding)
    least = min(console.width, shown_title.cell_len)  # rich makes a title no wider than its table
    table = Table(title=shown_title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=least)
    for column in columns[: len(widths)]:
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            overflow="ellipsis" if is_live else "fold",
            no_wrap=is_live or not (column.wraps or (is_fixed and (column.breaks or column.shortens))),
            width=widths[column.name] if is_fixed else None,
            min_width=widths[column.name],
        )
    for row in rows:
        table.add_row(*(row.get(name, "") for name in widths))
    notes = []
    if left_out := [column.name for column in columns[len(widths) :]]:
        notes.append(f"Not shown for lack of space: {', '.join(left_out)}.")
    if is_shortened:
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
