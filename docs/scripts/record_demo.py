"""Record `make demo` in a terminal and write it as an animated SVG.

    python docs/scripts/record_demo.py [--seconds 24] [--speed 2] [--output docs/images/demo.svg]

Runs the demo in a pseudo-terminal and takes pictures of the screen. The SVG is a strip of these pictures that moves in
steps. Readers who prefer reduced motion see the last picture.
"""

import argparse
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final

import pyte

ROOT: Final = Path(__file__).parents[2]
_COLUMNS: Final = 86
_ROWS: Final = 22
_PICTURES_A_SECOND: Final = 2.0
_HOLD: Final = 6.0  # seconds that the last picture stays
_WIDTH, _HEIGHT, _SIZE = 8.4, 19.0, 14.0  # of a character; of its font
_MARGIN, _BAR = 18.0, 34.0
_FONT: Final = "ui-monospace, 'SFMono-Regular', 'Liberation Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
_BACKGROUND, _FOREGROUND = "#0d1117", "#e6edf3"
_COLOURS: Final = {
    "default": _FOREGROUND, "black": "#6e7681", "red": "#ff7b72", "green": "#3fb950", "brown": "#d29922",
    "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#ffffff",
}  # fmt: skip

_TITLE: Final = (
    "A recording of make demo: three workers share a load, one of them is killed and then gets no more requests"
)

Row = tuple[tuple[int, str, str, bool], ...]  # column, text, colour, bold


def record(seconds: float) -> Iterator[tuple[float, tuple[Row, ...]]]:
    """Run the demo and yield pictures of the screen, each with its time."""
    screen = pyte.Screen(_COLUMNS, _ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(b"$ make demo\r\n")
    process, terminal = pty.fork()
    if process == 0:
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "controller.examples.demo", "--seconds", str(seconds)]
        os.execve(command[0], command, environment)  # noqa: S606 - our own program
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    started = due = time.monotonic()
    while True:
        readable, _, _ = select.select([terminal], [], [], max(0.0, due - time.monotonic()))
        if readable:
            try:
                output = os.read(terminal, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                output = b""
            if not output:
                break
            stream.feed(output)
        if time.monotonic() >= due:
            yield due - started, picture(screen)
            due += 1 / _PICTURES_A_SECOND
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit("The demo failed, so nothing was written.")
    yield time.monotonic() - started, picture(screen)


def picture(screen: pyte.Screen) -> tuple[Row, ...]:
    """Return the rows of the screen as runs of characters of one style."""
    return tuple(row(screen.buffer[y], screen.columns) for y in range(screen.lines))


def row(line: pyte.screens.StaticDefaultDict[int, pyte.screens.Char], columns: int) -> Row:
    """Return the runs of one row, without what is blank."""
    runs = []
    cells = [(x, line[x]) for x in range(columns)]
    for (blank, colour, bold), group in groupby(cells, lambda cell: (cell[1].data == " ", cell[1].fg, cell[1].bold)):
        run = list(group)
        if not blank:
            runs.append((run[0][0], "".join(cell.data for _, cell in run), colour, bold))
    return tuple(runs)


def svg(
    pictures: list[tuple[float, tuple[Row, ...]]], speed: float, title: str = _TITLE, columns: int = _COLUMNS
) -> str:
    """Return the animation, or one picture if there is only one."""
    strip = [pictures[0]]
    for at, rows in pictures[1:]:
        if rows != strip[-1][1]:
            strip.append((at, rows))
    used = max(max((y for y, runs in enumerate(rows) if runs), default=0) for _, rows in strip) + 1
    height = used * _HEIGHT + 2 * _MARGIN + _BAR
    width = columns * _WIDTH + 2 * _MARGIN
    length = (pictures[-1][0] - pictures[0][0]) / speed + _HOLD
    shift = used * _HEIGHT
    steps = "".join(
        f"{100 * at / speed / length:.2f}%{{transform:translateY(-{index * shift:g}px)}}"
        for index, (at, _) in enumerate(strip)
    )
    last = f"translateY(-{(len(strip) - 1) * shift:g}px)"
    names: dict[Row, str] = {}
    uses = []
    for index, (_, rows) in enumerate(strip):
        for y, runs in enumerate(rows[:used]):
            if runs:
                name = names.setdefault(runs, f"r{len(names)}")
                uses.append(f'<use href="#{name}" y="{index * shift + y * _HEIGHT:g}"/>')
    rows_once = [f'<text id="{name}" y="{_SIZE:g}">{"".join(map(tspan, runs))}</text>' for runs, name in names.items()]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f"<style>text{{font:{_SIZE:g}px {_FONT};fill:{_FOREGROUND};white-space:pre}}.b{{font-weight:700}}"
            f"@keyframes play{{{steps}100%{{transform:{last}}}}}"
            f"#strip{{transform:{last};animation:play {length:.2f}s step-end infinite}}"
            "@media (prefers-reduced-motion:reduce){#strip{animation:none}}</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="9" fill="{_BACKGROUND}" '
            'stroke="#6e7681"/>',
            *(f'<circle cx="{22 + 20 * i}" cy="20" r="6" fill="{fill}"/>'
              for i, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))),
            f"<defs>{''.join(rows_once)}</defs>",
            f'<svg x="{_MARGIN:g}" y="{_MARGIN + _BAR - 12:g}" width="{width - 2 * _MARGIN:g}" height="{shift:g}">',
            f'<g id="strip">{"".join(uses)}</g>',
            "</svg>",
            "</svg>\n",
        ]
    )  # fmt: skip


def tspan(run: tuple[int, str, str, bool]) -> str:
    """Return a run as SVG. Its fixed length aligns the columns in every font."""
    column, text, colour, bold = run
    shown = _COLOURS.get(colour.removeprefix("bright"), f"#{colour}")
    style = f' fill="{shown}"' * (shown != _FOREGROUND) + ' class="b"' * bold
    length = f' textLength="{len(text) * _WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
    return f'<tspan x="{column * _WIDTH:g}"{length}{style}>{escape(text)}</tspan>'


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=24, help="how long the demo runs (default: 24)")
    parser.add_argument("--speed", type=float, default=2, help="how fast the recording plays (default: 2)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "demo.svg")
    arguments = parser.parse_args()
    arguments.output.write_text(svg(list(record(arguments.seconds)), arguments.speed))
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
