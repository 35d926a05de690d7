"""Forest plots: the differences between two arms with their intervals, a panel for each metric."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from s2ap_diag.comparison.arms import SettingComparison, adjusted_p
from s2ap_diag.comparison.statistics import LEVEL
from s2ap_diag.output import plots

UNITS = {"points": "points", "log10": "log₁₀ ratio", "": ""}
WIDTH, HEIGHT, ROW = 2.3, 0.85, 0.22
"""Inches of a panel, of its title and axis, and of a row."""

ACROSS = 4
"""Panels side by side."""


def draw(compared: Sequence[SettingComparison], arms: tuple[str, str], file: Path) -> None:
    """Draw each metric's differences: by seed, where there is one setting, and over seeds.

    Raises:
        InputError: if the ending of ``file`` is of no known picture format.
    """
    metrics = list(dict.fromkeys(name for one in compared for name in one.metrics))
    rows = len(compared[0].seeds) + 1 if len(compared) == 1 else len(compared)
    across = min(len(metrics), ACROSS)
    down = math.ceil(len(metrics) / across)
    width, height = WIDTH * (across + 0.6), down * (HEIGHT + ROW * rows)
    with plots.picture(file, width, height, panels=len(metrics), rows=down) as axes:
        panels = axes if len(metrics) > 1 else [axes]
        for position, (name, panel) in enumerate(zip(metrics, panels, strict=True)):
            labels = _rows(panel, compared, name)
            panel.axvline(0, color="0.3", linewidth=0.8, zorder=1)
            panel.set_yticks(range(len(labels)), labels if position % across == 0 else [""] * len(labels))
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.grid(visible=False, axis="y")
            unit = next(one.metrics[name].unit for one in compared if name in one.metrics)
            panel.set_title(name.replace("_", " "))
            panel.set_xlabel(f"{arms[1]} − {arms[0]}\n{UNITS[unit]}".strip())


def _rows(axes: Axes, compared: Sequence[SettingComparison], name: str) -> list[str]:
    """Draw the rows of a metric and name them."""
    p_values = adjusted_p(compared)
    if len(compared) > 1:
        for row, one in enumerate(compared):
            if name in one.metrics:
                _interval(axes, one, name, row, p_values)
        return [one.setting for one in compared]
    (one,) = compared
    values = one.metrics[name].difference.by_unit
    axes.plot(values, range(len(values)), "o", color="0.5", markersize=3)
    _interval(axes, one, name, len(values), p_values)
    if len(values) == len(one.seeds):
        labels = [f"seed {seed}" + (f", fold {fold}" if fold >= 0 else "") for seed, fold in one.seeds]
    else:
        labels = [f"images {i + 1}" for i in range(len(values))]
    return [*labels, "mean"]


def _interval(
    axes: Axes, one: SettingComparison, name: str, row: int, p_values: Mapping[tuple[str, str], float]
) -> None:
    """Draw the mean, filled where it is beyond chance over all settings, and the interval where there is one."""
    difference = one.metrics[name].difference
    filled = plots.COLORS[0] if p_values.get((one.setting, name), 1.0) < 1 - LEVEL else "white"
    if difference.interval is not None:
        axes.plot(difference.interval, (row, row), color=plots.COLORS[0], linewidth=1.2)
    axes.plot(difference.mean, row, "D", color=plots.COLORS[0], markerfacecolor=filled, markersize=5)
