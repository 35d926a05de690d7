"""What every picture is drawn with: colour-blind safe, told apart in grey by marker and line."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what draws itself is imported without matplotlib, which takes seconds
    from matplotlib.axes import Axes

# Okabe & Ito's colours; each with a line and a marker of its own.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


LINES = ("-", "--", "-.", ":", "-", "--", "-.")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


COLUMN = 3.4  # inches, one column of a two-column paper


def look(index: int) -> dict[str, str]:
    """Colour, line and marker of the ``index``-th series."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def layer_bars(axes: "Axes", values: Mapping[str, float], *, xlabel: str) -> None:
    """Draw one horizontal bar for each layer, the largest on top."""
    names = sorted(values, key=lambda name: values[name])
    axes.barh(names, [values[name] for name in names], color=COLORS[0])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel(xlabel)


def points(axes: "Axes", values: Mapping[str, tuple[float, float | None]], *, ylabel: str) -> None:
    """Draw a marker for each value, by name, with its standard error where there is one."""
    for index, (name, (value, error)) in enumerate(values.items()):
        style = look(index)
        axes.errorbar([index], [value], yerr=None if error is None else [error], capsize=3, label=name, **style)  # type: ignore[arg-type]
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=1)
    axes.set_ylabel(ylabel)
