"""Draw the pictures of the documentation: two diagrams, the badges of the README, and dark variants of the plots.

    python docs/scripts/pictures.py

The pictures are SVG, and use the fonts of the reader's system. Diagrams and plots have a light and a dark variant. The
same input gives the same bytes. tests/test_docs.py fails if a picture is stale.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
IMAGES: Final = ROOT / "docs" / "images"
_FONT: Final = "ui-sans-serif, system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
_MONO: Final = "ui-monospace, 'SFMono-Regular', 'Liberation Mono', 'DejaVu Sans Mono', Menlo, monospace"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The colours of one variant of a picture."""

    text: str
    faint: str
    line: str
    box: str
    client: str
    replica: str
    store: str
    worker: str


LIGHT: Final = Scheme(
    text="#1f2328", faint="#59636e", line="#818b98", box="#ffffff",
    client="#ddf4ff", replica="#d9f2ec", store="#ffe9d6", worker="#eee5fb",
)  # fmt: skip
DARK: Final = Scheme(
    text="#e6edf3", faint="#9da7b1", line="#6e7681", box="#0d1117",
    client="#0f2a42", replica="#0d3330", store="#3d2613", worker="#2c2142",
)  # fmt: skip


class Drawing:
    """An SVG drawing that is built from boxes, texts and arrows."""

    def __init__(self, width: int, height: int, title: str, scheme: Scheme) -> None:
        self.scheme = scheme
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}" font-family="{_FONT}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{scheme.line}"/></marker></defs>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Draw a box with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" '
            f'stroke="{self.scheme.line}"/>'
        )

    def text(self, x: float, y: float, text: str, *, size: float = 14, bold: bool = False, faint: bool = False,
             anchor: str = "middle", mono: bool = False) -> None:  # fmt: skip
        """Write one line of text."""
        style = ' font-weight="600"' * bold + f' font-family="{_MONO}"' * mono
        fill = self.scheme.faint if faint else self.scheme.text
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{style}>'
            f"{escape(text)}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, *, both: bool = False, dashed: bool = False) -> None:
        """Draw an arrow from the first point to the second."""
        style = ' marker-start="url(#tip)"' * both + ' stroke-dasharray="5 4"' * dashed
        self.parts.append(
            f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" fill="none" stroke="{self.scheme.line}" stroke-width="1.5" '
            f'marker-end="url(#tip)"{style}/>'
        )

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def architecture(scheme: Scheme) -> str:
    """Return the picture of the architecture."""
    title = "Clients and workers use replicas without state, which decide in Redis by Lua scripts"
    drawing = Drawing(860, 400, title, scheme)
    drawing.box(20, 20, 230, 88, scheme.client)
    drawing.text(135, 48, "Clients", bold=True, size=15)
    drawing.text(135, 70, "OpenAI's SDK, FastChat's API", size=13)
    drawing.text(135, 89, "and web servers, your programs", size=13)
    drawing.box(610, 20, 230, 88, scheme.worker)
    drawing.text(725, 48, "Workers", bold=True, size=15)
    drawing.text(725, 70, "FastChat, LLaVA, and engines", size=13)
    drawing.text(725, 89, "such as vLLM and llama.cpp", size=13)
    drawing.arrow(250, 50, 610, 50, dashed=True)
    drawing.text(430, 42, "requests, directly or forwarded", size=13, faint=True)
    drawing.box(20, 172, 820, 84, scheme.replica)
    drawing.text(36, 196, "Replicas without state", bold=True, size=15, anchor="start")
    drawing.text(824, 196, "behind a load balancer", size=13, faint=True, anchor="end")
    for x, name in ((36, "replica 1"), (304, "replica 2"), (572, "replica N")):
        drawing.box(x, 208, 252, 34, scheme.box)
        drawing.text(x + 126, 230, f"{name}, with a snapshot", size=13)
    drawing.arrow(135, 108, 135, 172)
    drawing.text(147, 145, "which worker for model M?", size=13, faint=True, anchor="start")
    drawing.arrow(725, 108, 725, 172)
    drawing.text(713, 145, "register, report their load", size=13, faint=True, anchor="end")
    drawing.box(20, 312, 820, 72, scheme.store)
    drawing.text(36, 340, "Redis or Valkey", bold=True, size=15, anchor="start")
    drawing.text(36, 364, "one server, Sentinel, Cluster, or embedded", size=13, faint=True, anchor="start")
    drawing.text(824, 340, "choose, check the heartbeat, book: one Lua script", size=14, anchor="end")
    drawing.text(824, 364, "{ns}:model  {ns}:worker  {ns}:heartbeat", size=12, mono=True, faint=True, anchor="end")
    drawing.arrow(430, 256, 430, 312, both=True)
    drawing.text(442, 289, "one EVALSHA for many requests", size=13, faint=True, anchor="start")
    return str(drawing)


def by_way(scheme: Scheme) -> str:
    """Return the picture of direct requests beside requests by way of the cluster."""
    title = "Direct: the client gets the address of a worker. By way: it gets the address of the cluster"
    drawing = Drawing(860, 404, title, scheme)
    for left, heading in ((20, "Direct (default)"), (450, "By way of the cluster (--by-way)")):
        drawing.text(left, 30, heading, bold=True, size=15, anchor="start")
        drawing.box(left, 46, 390, 44, scheme.client)
        drawing.text(left + 195, 73, "Client", bold=True)
        drawing.box(left, 338, 390, 44, scheme.worker)
        drawing.text(left + 195, 365, "Workers", bold=True)
        drawing.arrow(left + 40, 90, left + 40, 178, both=True)
        drawing.text(left + 54, 122, "1. which worker?", size=13, anchor="start")
        drawing.arrow(left + 40, 338, left + 40, 250)
        drawing.text(left + 54, 299, "heartbeats, polls", size=13, faint=True, anchor="start")
    drawing.text(74, 142, "its address", size=13, faint=True, anchor="start")
    drawing.text(504, 142, "the cluster's address", size=13, faint=True, anchor="start")
    drawing.box(20, 178, 220, 72, scheme.replica)
    drawing.text(130, 208, "Load balancer, replicas", bold=True)
    drawing.text(130, 230, "the load is estimated", size=13, faint=True)
    drawing.arrow(325, 90, 325, 338, both=True)
    drawing.text(339, 208, "2. request,", size=13, anchor="start")
    drawing.text(339, 226, "response", size=13, anchor="start")
    drawing.box(450, 178, 390, 72, scheme.replica)
    drawing.text(645, 208, "Load balancer, replicas", bold=True)
    drawing.text(645, 230, "a lease from start to end: the load is exact", size=13, faint=True)
    drawing.arrow(690, 90, 690, 178, both=True)
    drawing.text(704, 122, "2. request,", size=13, anchor="start")
    drawing.text(704, 140, "response", size=13, anchor="start")
    drawing.arrow(690, 250, 690, 338, both=True)
    drawing.text(704, 299, "forwarded", size=13, anchor="start")
    return str(drawing)


def badge(label: str, value: str, colour: str) -> str:
    """Return a badge."""
    left, right = (8 + 6.6 * len(text) + 8 for text in (label, value))
    width, title = left + right, f"{label}: {value}"
    texts = [
        f'<text x="{x:.1f}" y="14" textLength="{6.6 * len(text):.1f}" fill="#fff">{escape(text)}</text>'
        for x, text in ((8, label), (left + 8, value))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="20" '
            f'role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f'<clipPath id="r"><rect width="{width:.0f}" height="20" rx="3"/></clipPath>',
            f'<g clip-path="url(#r)"><rect width="{left:.1f}" height="20" fill="#444c56"/>'
            f'<rect x="{left:.1f}" width="{right:.1f}" height="20" fill="{colour}"/></g>',
            f'<g font-family="{_FONT}" font-size="11">{"".join(texts)}</g>',
            "</svg>\n",
        ]
    )


def badges() -> Iterator[tuple[str, str]]:
    """Yield the badges of the README. pyproject.toml has the licence and the versions of Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [one.rpartition(" ")[2] for one in project["classifiers"] if "Python :: 3." in one]
    yield "licence", badge("licence", project["license"], "#0f766e")
    yield "python", badge("Python", ", ".join(versions), "#1d4ed8")
    yield "redis", badge("Redis", "7+, Valkey", "#b91c1c")
    yield "fastchat", badge("FastChat", "0.2.36", "#7e22ce")


_DARK_PLOT: Final[Mapping[str, str]] = {
    "#ffffff": "none",
    "#000000": DARK.text,
    "#dddddd": "#30363d",
    "#0072b2": "#58a6ff",
    "#d55e00": "#ff8c42",
    "#009e73": "#3fd0a4",
    "#cc79a7": "#e39ac4",
    "#7f7f7f": "#b0b8c0",
}


def dark_plot(light: str) -> str:
    """Return a plot of benchmarks/dispatch_plots.py in colours for a dark page."""
    dark = re.sub(r"#[0-9A-Fa-f]{6}\b", lambda colour: _DARK_PLOT.get(colour[0].lower(), colour[0]), light)
    style = '<style type="text/css">*{'
    return dark.replace(style, f'<style type="text/css">svg{{fill:{DARK.text}}}*{{', 1)


def pictures() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each picture."""
    yield "architecture-light.svg", architecture(LIGHT)
    yield "architecture-dark.svg", architecture(DARK)
    yield "by-way-light.svg", by_way(LIGHT)
    yield "by-way-dark.svg", by_way(DARK)
    for name, text in badges():
        yield f"badge-{name}.svg", text
    for path in sorted(IMAGES.glob("wait-by-*.svg")):
        if not path.stem.endswith("-dark"):
            yield f"{path.stem}-dark.svg", dark_plot(path.read_text())


def main() -> None:
    """Write all pictures."""
    for name, text in pictures():
        (IMAGES / name).write_text(text)


if __name__ == "__main__":
    main()
