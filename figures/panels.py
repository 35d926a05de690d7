"""The panels of the figures: each draws into one pair of axes and notes in the drawing what it drew."""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.catalogue import ARMS, Cell
from figures.curves import Curves, Drawing, Spectrum
from figures.numbers import Reading
from figures.wording import NOT_RUN
from s2ap_diag.output import plots
from s2ap_diag.sharpness import UNRELIABLE

SERIES = {"orig": plots.look(0), "s2ap": plots.look(1)}
THIN = {"linewidth": 0.5, "marker": ""}
"""The look, on top of its arm's, of lambda_max as the paper defines it."""
UNCONVERGED = f"residual above {UNRELIABLE:g}"


LINE = 0.2
"""Inches of a line that names what was not run."""

LEAST = 2.3
"""Inches of a figure that has panels, at least: a label of an axis fits beside one."""


def grid(figure: Any, columns: int, count: int, absent: Sequence[str] = ()) -> list[Axes]:
    """Add so many panels, row by row; below them, in grey, a line for what is ``absent``."""
    rows = -(-count // columns)
    height = figure.bbox.height / figure.dpi
    line = LINE / max((height - LINE * len(absent)) / max(rows, 1), LINE)  # in rows of panels
    cells = figure.add_gridspec(rows + len(absent), columns, height_ratios=[1.0] * rows + [line] * len(absent))
    for row, text in enumerate(absent, rows):
        panel = figure.add_subplot(cells[row, :])
        panel.axis("off")
        plain = text.replace("$", r"\$")  # which matplotlib takes for mathematics
        panel.text(0.5, 0.5, plain, transform=panel.transAxes, ha="center", va="center", color="0.5", fontsize=7)
    return [figure.add_subplot(cells[index // columns, index % columns]) for index in range(count)]


def height_of(count: int, columns: int, row: float, others: float, absent: Sequence[str]) -> float:
    """Give a figure's height in inches: that of its rows, of its labels and legend where there are any, and lines."""
    rows = -(-count // columns)
    return (max(rows * row + others, LEAST) if rows else 0) + LINE * len(absent) * (1 if rows else 1.5)


def not_run(cells: Iterable[Cell], width: float, name: Callable[[Cell], str] = lambda cell: "") -> list[str]:
    """Name what was not run in a line, or as many as ``width`` inches ask for; none where all was run.

    Args:
        name: what cells are called besides their budget; those of one name stand together.
    """
    budgets: dict[str, list[str]] = defaultdict(list)
    for cell in cells:
        budgets[name(cell)].append(cell.budget)
    said = [f"{called} {', '.join(of)}".strip() for called, of in budgets.items()]
    return textwrap.wrap(f"{NOT_RUN}: {'; '.join(said)}", int(18 * width)) if said else []


def _integer_epochs(panel: Axes) -> None:
    panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=5))


def eigenvalues(panel: Axes, spectra: Sequence[Spectrum], drawing: Drawing, name: str) -> None:
    """Draw lambda_max of both arms over epochs, at a setting."""
    plots.shade_warmup(panel, spectra[0].curves.warmup)
    for spectrum in spectra:
        look, said = ({}, "") if spectrum.live else (THIN, ", all scores")
        for arm, by_seed in spectrum.curves.arms.items():
            style = {**SERIES[arm], **look}
            plots.seed_curves(panel, by_seed, label=f"{ARMS[arm]}{said}", style=style, band=spectrum.live)
            drawing.add(name, arm, spectrum.metric, by_seed)
            _open_marks(panel, by_seed.mean(axis=1).reindex(spectrum.unconverged(arm)).dropna(), spectrum, SERIES[arm])
    _integer_epochs(panel)
    _decades(panel, _drawn(spectra))


def _open_marks(panel: Axes, means: pd.Series, spectrum: Spectrum, look: Mapping[str, str]) -> None:
    """Draw open markers over a curve where its readings have not converged."""
    if means.empty:
        return
    size = mpl.rcParams["lines.markersize"] * (1 if spectrum.live else 0.6)
    panel.scatter(
        means.index, means, size**2, marker=look["marker"], facecolors="white", edgecolors=look["color"],
        linewidths=0.7, zorder=3,
    )  # fmt: skip
    panel.plot([], [], color="0.3", linestyle="", marker="o", markerfacecolor="white", label=UNCONVERGED)


def stability(panel: Axes, curves: Curves, drawing: Drawing, name: str) -> None:
    """Draw h of both arms over epochs, from the last warm-up epoch on."""
    for arm, by_seed in curves.arms.items():
        later = by_seed[by_seed.index >= curves.warmup]
        plots.seed_curves(panel, later, label=ARMS[arm], style=SERIES[arm])
        drawing.add(name, arm, "h", later)
    _integer_epochs(panel)


def differences(panel: Axes, curves_of: Mapping[Cell, Curves], drawing: Drawing, where: str = "") -> None:
    """Draw h of Orig. minus that of S2AP over epochs, a curve for each sparsity; the legend stands below."""
    drawn = {cell: curves.difference for cell, curves in curves_of.items() if not curves.difference.empty}
    for index, cell in enumerate(curves_of):
        if cell in drawn:
            plots.seed_curves(panel, drawn[cell], label=cell.budget, style=plots.look(index))
            drawing.add(f"{where}{cell.budget}", "orig - s2ap", "h", drawn[cell])
    warmup = max(curves.warmup for curves in curves_of.values())
    if warmup:
        panel.axvline(warmup, color="0.3", linestyle=":", linewidth=1, label="end of warm-up")
    plots.stability_halves(panel, first="Orig.", second="S2AP")
    panel.set_xlabel("epoch")
    _integer_epochs(panel)
    legend_below(panel)


def all_eigenvalues(panel: Axes, spectra_of: Mapping[Cell, Sequence[Spectrum]], drawing: Drawing) -> None:
    """Draw lambda_max of every sparsity in one panel: told apart by colour and marker, the arms by line and filling."""
    spectra = [spectrum for of_cell in spectra_of.values() for spectrum in of_cell]
    plots.shade_warmup(panel, max(spectrum.curves.warmup for spectrum in spectra))
    for index, (cell, of_cell) in enumerate(spectra_of.items()):
        first = next((spectrum for spectrum in of_cell if spectrum.curves.arms), None)
        for spectrum in of_cell:
            for arm, by_seed in spectrum.curves.arms.items():
                style = plots.look(index) | {"linestyle": "-" if arm == "orig" else "--"}
                filling = {"markerfacecolor": style["color"] if arm == "orig" else "white"}
                label = f"{cell.budget} {ARMS[arm]}" if spectrum is first else None
                look = filling if spectrum.live else THIN
                plots.seed_curves(panel, by_seed, label=label, style={**style, **look}, band=False)
                drawing.add(f"c, {cell.budget}", arm, spectrum.metric, by_seed)
    _decades(panel, _drawn(spectra))
    _integer_epochs(panel)
    legend_below(panel)


def was_drawn(spectra: Iterable[Spectrum]) -> bool:
    """Return whether an arm was tracked."""
    return bool(_drawn(spectra))


def _drawn(spectra: Iterable[Spectrum]) -> list[pd.DataFrame]:
    return [by_seed for spectrum in spectra for by_seed in spectrum.curves.arms.values()]


def _decades(panel: Axes, drawn: Iterable[pd.DataFrame]) -> None:
    plots.decades(panel, np.concatenate([by_seed.mean(axis=1).dropna().to_numpy() for by_seed in drawn]))


def bars(
    panel: Axes,
    readings: Mapping[Cell, Mapping[str, Reading]],
    drawing: Drawing,
    name: str,
    metric: str,
    *,
    ylabel: str,
    numbers: str,
    numbers_size: float = 6,
) -> None:
    """Draw a group for each sparsity that has runs, a bar for each arm."""
    by_cell = {
        cell: {arm: reading for arm, reading in arms.items() if reading.by_seed} for cell, arms in readings.items()
    }
    measured = {cell: by_arm for cell, by_arm in by_cell.items() if by_arm}
    arms = ("orig", "s2ap")
    means = [[by_arm[arm].mean if arm in by_arm else np.nan for arm in arms] for by_arm in measured.values()]
    table = pd.DataFrame(means, [cell.budget for cell in measured], [ARMS[arm] for arm in arms], dtype=float)
    unknown = (np.nan, np.nan)
    errors = {
        ARMS[arm]: np.array([by_arm[arm].error if arm in by_arm else unknown for by_arm in measured.values()]).T
        for arm in arms
    }
    plots.bars(panel, table, ylabel=ylabel, errors=errors, numbers=numbers, numbers_size=numbers_size)
    panel.legend().remove()
    for cell, by_arm in measured.items():
        for arm, reading in by_arm.items():
            drawing.add_reading(name, arm, metric, cell.budget, reading)


def reading_curve(
    panel: Axes, readings: Mapping[float, Reading], label: str, metric: str, drawing: Drawing, style: Mapping[str, Any]
) -> None:
    """Draw a metric against gamma with its error bars, and note it under the curve's label."""
    means = [reading.mean for reading in readings.values()]
    errors = np.array([reading.error for reading in readings.values()]).T
    panel.errorbar(list(readings), means, yerr=errors, label=label, capsize=2, elinewidth=0.7, **style)
    for gamma, reading in readings.items():
        drawing.add_reading(label, "s2ap", metric, gamma, reading)


def legend_below(panel: Axes) -> None:
    """Put the legend below the panel, if there is anything to name."""
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        panel.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, columnspacing=1.0)


def shared_legend(figure: Any, axes: Iterable[Axes], where: str = "outside upper center") -> None:
    """Put one legend for all panels, of what any of them shows."""
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc=where, ncols=min(len(entries), 3))
