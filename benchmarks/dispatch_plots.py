"""Draw the plots of benchmarks/dispatch_quality.py. The same figures give the same file, byte by byte."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette, which colour-blind readers can distinguish, with a grey. Each line also has its own marker.
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F", "#009E73", "#0072B2", "#000000")
MARKERS = ("s", "D", "v", "^", "X", "P", "o", "")
LEAST_GAP = 0.055  # smallest distance of labels, as a share of the height of the plot


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights of labels, moved up where they would overlap."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def draw(
    file: Path,
    label: str,
    logarithmic: bool,
    means: Mapping[str, Mapping[float, float]],
    waits: str = "mean wait before a slot, s",
) -> None:
    """Plot the mean wait against the varied parameter. Each row is a line with its name at the end."""
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
    axes.set_ylabel(waits)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for by_value, colour, marker in zip(means.values(), COLOURS, MARKERS, strict=False):
        style = "-" if marker else "--"
        axes.plot(values, list(by_value.values()), color=colour, marker=marker, linestyle=style)
    lasts = [by_value[values[-1]] for by_value in means.values()]
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    heights = spread([(math.log10(last) - low) / (high - low) for last in lasts], LEAST_GAP)
    for case, colour, last, height in zip(means, COLOURS, lasts, heights, strict=False):
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
