"""Draws what benchmarks/dispatch_quality.py has found; a file is the same, byte by byte, when its figures are."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours can be told apart by the colour-blind; and each line has its mark.
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#0072B2", "#000000")
MARKS = ("s", "D", "v", "^", "P", "o", "")
LEAST_GAP = 0.055  # between labels, as a share of the height


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights of labels, moved up where they would touch."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def draw(file: Path, label: str, logarithmic: bool, means: Mapping[str, Mapping[float, float]]) -> None:
    """The mean wait against what was varied, one line a row, each with its name at its end."""
    mpl.rcParams.update({"svg.hashsalt": "dispatch_quality", "font.size": 11})
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    values = list(next(iter(means.values())))
    axes.set_yscale("log")
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlabel(label)
    axes.set_ylabel("mean wait before a slot, s")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for by_value, colour, mark in zip(means.values(), COLOURS, MARKS, strict=True):
        style = "-" if mark else "--"
        axes.plot(values, list(by_value.values()), color=colour, marker=mark, linestyle=style)
    lasts = [by_value[values[-1]] for by_value in means.values()]
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    heights = spread([(math.log10(last) - low) / (high - low) for last in lasts], LEAST_GAP)
    for case, colour, last, height in zip(means, COLOURS, lasts, heights, strict=True):
        axes.annotate(
            case,
            (values[-1], last),
            (1.03, height),
            textcoords="axes fraction",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2, "relpos": (0, 0.5)},
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100, metadata={"Date": None} if file.suffix == ".svg" else None)
