"""Tables on the terminal."""

import io
import sys

from rich.box import HEAVY_HEAD, Box
from rich.console import Console
from rich.padding import PaddingDimensions
from rich.table import Table
from rich.text import Text


def create_console() -> Console:
    """Return a console for standard output. It prints characters that the encoding lacks as question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    if not console.is_terminal:
        console.width = 250  # in pipes and files, long lines must not be cut
    return console


def create_table(title: str, box: Box = HEAVY_HEAD, padding: PaddingDimensions = (0, 1)) -> Table:
    """Return a table without columns. box, padding: as in rich.table.Table."""
    return Table(title=title, title_justify="left", box=box, padding=padding)


def cell(text: str, encoding: str) -> Text:
    """Return a cell. Characters that the encoding lacks become question marks before rich computes the widths."""
    return Text(text.encode(encoding, errors="replace").decode(encoding))
