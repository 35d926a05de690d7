"""The look of every picture: colour-blind safe, told apart in grey by marker and line, vector text."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib import pyplot
from matplotlib.axes import Axes

# Okabe & Ito's colours; each with a line and a marker of its own.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


LINES = ("-", "--", "-.", ":", "-", "--", "-.")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


STYLE: dict[Any, Any] = {
    **sns.axes_style("whitegrid", {"axes.edgecolor": "0.3", "grid.color": "0.9"}),
    "figure.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


COLUMN = 3.4  # inches, one column of a two-column paper


def look(index: int) -> dict[str, str]:
    """Colour, line and marker of the ``index``-th series."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def layer_bars(axes: Axes, values: Mapping[str, float], *, xlabel: str) -> None:
    """Draw one horizontal bar for each layer, the largest on top."""
    names = sorted(values, key=lambda name: values[name])
    axes.barh(names, [values[name] for name in names], color=COLORS[0])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel(xlabel)


def points(axes: Axes, values: Mapping[str, tuple[float, float | None]], *, ylabel: str) -> None:
    """Draw a marker for each value, by name, with its standard error where there is one."""
    for index, (name, (value, error)) in enumerate(values.items()):
        style = look(index)
        axes.errorbar([index], [value], yerr=None if error is None else [error], capsize=3, label=name, **style)  # type: ignore[arg-type]
    axes.set_xticks(np.arange(len(values)), list(values))
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylabel(ylabel)


def fresh_axes() -> Axes:
    """Open a figure of one panel in this look: pyplot's, so that a notebook shows it."""
    with mpl.rc_context(STYLE):
        return pyplot.figure(figsize=(COLUMN, 2.4), layout="constrained").add_subplot()
