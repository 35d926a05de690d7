"""Drawings of sharpness: a curve for each run and mode of BatchNorm, over the epochs of its checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from s2ap_diag.output import plots
from s2ap_diag.output.curves import Curve, Drawn, Point, arrange
from s2ap_diag.sharpness import UNRELIABLE

LAMBDA = r"$\lambda_{max}$"

BEST = "*"
"""The marker of the checkpoint that a stage handed on; no series has it."""


Panel = Callable[[Axes], None]


class Reading(NamedTuple):
    """A value of a checkpoint, its standard error, and whether it converged."""

    value: float
    error: float | None
    converged: bool


Read = Callable[[dict[str, Any]], Reading]


def draw(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw what ``sharpness --json`` gives of checkpoints: lambda_max, loss differences and layers, where measured.

    Args:
        records: of one measurement, so with the same radii and layers.
        file: a name that ends in .png, .pdf or .svg.

    Raises:
        InputError: if it ends in anything else.
    """
    drawn = arrange(records)
    whole: list[Panel] = [partial(_eigenvalues, drawn=drawn), *_loss_difference_panels(drawn)]
    by_layer = _layer_panels(drawn)
    panels = [*whole, *by_layer]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    heights = [_layers_height(drawn) if by_layer and row >= len(whole) // columns else 2.4 for row in range(rows)]
    with plots.canvas([file], columns * plots.COLUMN, sum(heights) + 0.5) as figure:
        grid = figure.add_gridspec(rows, columns, height_ratios=heights)
        for index, panel in enumerate(panels):
            row, column = divmod(index, columns)
            alone = index == len(panels) - 1 and column == 0
            panel(figure.add_subplot(grid[row, :] if alone else grid[row, column]))
        if len(drawn.modes) == 1:
            figure.suptitle(f"BatchNorm: {drawn.modes[0]}", fontsize=8)
        handles = _legend(drawn)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _layers_height(drawn: Drawn) -> float:
    """Give a panel of layers its height in inches: taller where marks stand one above the other in a layer's row."""
    row = 0.13 if drawn.over_epochs else 0.09 + 0.04 * len(drawn.points)
    return max(2.4, row * len(drawn.points[0].record["layers"]) + 0.8)


def _live(record: dict[str, Any]) -> Reading:
    return Reading(record["lambda_max_live"], record["lambda_max_live_standard_error"], record["converged_live"])


def _of_all_scores(record: dict[str, Any]) -> Reading:
    return Reading(record["lambda_max"], record["lambda_max_standard_error"], record["converged"])


def _loss_difference_at(rho: str) -> Read:
    def read(record: dict[str, Any]) -> Reading:
        difference = record["loss_difference"][rho]
        return Reading(difference["mean"], difference["standard_error"], converged=True)

    return read


def _trace(
    axes: Axes, x: Sequence[float], readings: Sequence[Reading], look: Mapping[str, str], *,
    joined: bool, thin: bool = False,
) -> None:  # fmt: skip
    """Draw readings with their errors, those that have not converged open."""
    color, y = look["color"], [reading.value for reading in readings]
    if joined and len(x) > 1:
        axes.plot(x, y, color=color, linestyle=look["linestyle"], linewidth=0.5 if thin else 1.2)
    errors = [np.nan if reading.error is None else reading.error for reading in readings]
    if not np.isnan(errors).all():
        axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=color, elinewidth=0.4 if thin else 0.8)
    _marks(axes, x, y, [reading.converged for reading in readings], look, thin=thin)


def _marks(
    axes: Axes, x: Sequence[float], y: Sequence[float], converged: Sequence[bool], look: Mapping[str, str], *,
    thin: bool,
) -> None:  # fmt: skip
    """Draw markers, open where the reading has not converged."""
    color = look["color"]
    filling = [color if there else "white" for there in converged]
    size = _size(look["marker"], thin=thin)
    axes.scatter(x, y, size**2, marker=look["marker"], facecolors=filling, edgecolors=color, linewidths=0.7, zorder=3)


def _size(marker: str, *, thin: bool) -> float:
    """Give a marker its size in points."""
    return (7 if marker == BEST else 3.5) * (0.6 if thin else 1)


def _look(curve: Curve, *, best: bool = False) -> dict[str, str]:
    """Colour and line of a curve, and the marker of its points."""
    look = plots.look(curve.index)
    return {**look, "marker": BEST} if best else look


def _curves(axes: Axes, drawn: Drawn, read: Read, *, thin: bool = False) -> None:
    for curve in drawn.curves:
        for points, best in ((curve.epochs, False), (curve.best, True)):
            joined = drawn.over_epochs and not best
            readings = [read(point.record) for point in points]
            _trace(axes, [point.x for point in points], readings, _look(curve, best=best), joined=joined, thin=thin)


def _eigenvalues(axes: Axes, drawn: Drawn) -> None:
    _curves(axes, drawn, _of_all_scores, thin=True)
    _curves(axes, drawn, _live)
    _decades(axes, drawn, _of_all_scores, _live)
    axes.set_ylabel(LAMBDA)
    _x_axis(axes, drawn)


def _decades(axes: Axes, drawn: Drawn, *reads: Read) -> None:
    plots.decades(axes, np.array([read(point.record).value for read in reads for point in drawn.points]))


def _loss_difference_panels(drawn: Drawn) -> list[Panel]:
    """Draw over the radii where checkpoints are few and stand by themselves, else at the largest one."""
    rhos = list(drawn.points[0].record["loss_difference"])
    if not rhos:
        return []
    if len(rhos) > 1 and not drawn.over_epochs and len(drawn.points) <= len(plots.COLORS):
        return [partial(_loss_differences_by_rho, drawn=drawn)]
    return [partial(_loss_differences, drawn=drawn, rho=max(rhos, key=float))]


def _loss_differences(axes: Axes, drawn: Drawn, rho: str) -> None:
    read = _loss_difference_at(rho)
    _curves(axes, drawn, read)
    _decades(axes, drawn, read)
    axes.set_ylabel(f"loss difference, at least (ρ = {rho})")
    _x_axis(axes, drawn)


def _loss_differences_by_rho(axes: Axes, drawn: Drawn) -> None:
    for curve in drawn.curves:
        for point in curve.points:
            by_rho = {float(rho): _loss_difference_at(rho)(point.record) for rho in point.record["loss_difference"]}
            rhos = sorted(by_rho)
            _trace(axes, rhos, [by_rho[rho] for rho in rhos], _look(curve, best=point.best), joined=True)
    axes.set_ylabel("loss difference, at least")
    axes.set_xlabel("ρ")


def _x_axis(axes: Axes, drawn: Drawn) -> None:
    if drawn.over_epochs:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        return
    names = [drawn.name_of(curve, point, between="\n") for curve in drawn.curves for point in curve.points]
    axes.set_xticks([point.x for point in drawn.points], names, rotation=90 if len(names) > 4 else 0)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _layer_panels(drawn: Drawn) -> list[Panel]:
    """Lay out a heat map for each curve of several checkpoints, and one panel of marks for the other checkpoints."""
    records = [point.record for point in drawn.points]
    if not records[0]["layers"]:
        return []
    # The same order in all panels.
    layers = sorted(records[0]["layers"], key=lambda name: -max(record["layers_live"][name] for record in records))
    colors = _colors(np.array([record["layers_live"][name] for record in records for name in layers]))
    several = [curve for curve in drawn.curves if drawn.over_epochs and len(curve.points) > 1]
    single = [(curve, point) for curve in drawn.curves if curve not in several for point in curve.points]
    maps: list[Panel] = [partial(_layer_map, curve=curve, layers=layers, norm=colors) for curve in several]
    return [*maps, *([partial(_layer_marks, shown=single, layers=layers)] if single else [])]


def _layer_map(axes: Axes, curve: Curve, layers: list[str], norm: mpl.colors.Normalize) -> None:
    """Draw layers down, epochs across and the best last; open circles where a reading has not converged."""
    points = [*curve.epochs, *curve.best]
    columns = [[point.record["layers_live"][name] for name in layers] for point in points]
    names = ["best" if point.best else str(point.record["epoch"]) for point in points]
    table = pd.DataFrame(np.transpose(columns), index=layers, columns=names)
    plots.layer_heat_map(axes, table, label=f"{LAMBDA} of live scores", norm=norm)
    residuals = np.array([[point.record["layer_residuals_live"][name] for name in layers] for point in points])
    column, row = (residuals > UNRELIABLE).nonzero()
    axes.scatter(column + 0.5, row + 0.5, 9, marker="o", facecolors="none", edgecolors="white", linewidths=0.7)
    axes.set_title(curve.name)


def _colors(values: np.ndarray) -> mpl.colors.Normalize:
    """Choose the scale of colours of all maps, logarithmic over more than a decade."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 10 * low:
        return mpl.colors.LogNorm(low, high)
    if high > 0 and (values > 0).any() and high > 10 * float(values[values > 0].min()):
        return mpl.colors.SymLogNorm(max(float(values[values > 0].min()), 1e-4 * high), vmin=low, vmax=high)
    return mpl.colors.Normalize(low, high)


def _layer_marks(axes: Axes, shown: Sequence[tuple[Curve, Point]], layers: list[str]) -> None:
    """Draw a row for each layer, the sharpest on top; in it a mark for each checkpoint, one below the other."""
    values: list[float] = []
    for index, (curve, point) in enumerate(shown):
        rows = np.arange(len(layers)) + (index - (len(shown) - 1) / 2) * 0.7 / len(shown)
        for suffix, thin in (("", True), ("_live", False)):
            eigenvalues = [point.record[f"layers{suffix}"][name] for name in layers]
            converged = [point.record[f"layer_residuals{suffix}"][name] <= UNRELIABLE for name in layers]
            _marks(axes, eigenvalues, rows.tolist(), converged, _look(curve, best=point.best), thin=thin)
            values += eigenvalues
    plots.decades(axes, np.array(values), axis="x")
    axes.set_yticks(range(len(layers)), layers, fontsize=6)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel(f"{LAMBDA} of the layer")


def _legend(drawn: Drawn) -> list[Line2D]:
    """Make entries for the curves, and for those of the marks that are there."""
    entries: list[Line2D] = []

    def add(label: str, **look: Any) -> None:
        entries.append(Line2D([], [], label=label, **look))

    for curve in drawn.curves:
        look = _look(curve, best=not curve.epochs)
        add(curve.name, **look, markersize=_size(look["marker"], thin=False))
    if any(point.best for point in drawn.points):
        add("best", color="0.3", linestyle="", marker=BEST, markersize=_size(BEST, thin=False))
    add("thin: all scores", color="0.3", marker="o", linewidth=0.5, markersize=_size("o", thin=True))
    records = [point.record for point in drawn.points]
    if not all(record["converged"] and record["converged_live"] for record in records):
        add("open: not converged", color="0.3", linestyle="", marker="o", markerfacecolor="white")
    return entries
