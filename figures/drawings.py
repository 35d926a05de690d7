"""The figures: a renderer for each kind, that draws, writes the pictures and returns what it drew."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.catalogue import ARMS, DATA, METHODS, NETWORKS, Cell, Entry
from figures.matching import Library, mixed_settings
from figures.numbers import Line, Reading, accuracy, evaluations_of, loss_difference_at
from figures.tables import NOT_RUN, attacks, gammas
from s2ap_diag.output import plots
from s2ap_diag.reading.results import Run

TEXT_WIDTH = 2.1 * plots.COLUMN
DATA_COLUMNS = ("panel", "series", "metric", "x", "seed", "value", "interval_low", "interval_high")
H = "Hamming distance h"
SERIES = {"orig": plots.look(0), "s2ap": plots.look(1)}
THIN = {"linewidth": 0.5, "marker": ""}
"""The look, on top of its arm's, of lambda_max as the paper defines it."""


@dataclass
class Drawing:
    """What a figure shows.

    Attributes:
        caption: sentences.
        rows: every number drawn, by :data:`DATA_COLUMNS`; accuracies have their 95 % Wilson interval.
        notes: what a reader has to be warned of.
    """

    caption: list[str]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def data(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(DATA_COLUMNS))

    def add(self, panel: str, series: str, metric: str, by_seed: pd.DataFrame) -> None:
        """Record curves, a column for each seed."""
        for seed in by_seed:
            drawn = by_seed[seed].dropna()
            self.rows += [(panel, series, metric, x, seed, y, None, None) for x, y in drawn.items()]

    def add_reading(self, panel: str, series: str, metric: str, x: Any, reading: Reading) -> None:
        """Record one point or bar."""
        for seed, value in reading.by_seed.items():
            interval = reading.intervals.get(seed, (None, None))
            self.rows.append((panel, series, metric, x, seed, value, *interval))


@dataclass(frozen=True)
class Curves:
    """A metric of each arm over epochs, a column for each seed; of arms that have runs.

    Attributes:
        warmup: epochs without perturbation in S2AP's runs.
    """

    arms: Mapping[str, pd.DataFrame]
    warmup: int

    @property
    def difference(self) -> pd.DataFrame:
        """The first arm's minus the second's, of the seeds that both have; empty if there is none."""
        if len(self.arms) < 2:
            return pd.DataFrame()
        orig, s2ap = (self.arms[arm] for arm in ("orig", "s2ap"))
        seeds = orig.columns.intersection(s2ap.columns)
        return (orig[seeds] - s2ap[seeds]).dropna(how="all")


@dataclass(frozen=True)
class Spectrum:
    """lambda_max of both arms over epochs.

    Attributes:
        metric: its name in ``metrics.csv``.
        live: whether it is over the scores of channels that keep a weight, or over all as the paper defines it. A
            channel without one has eigenvalues of the order of 1 / eps of its BatchNorm, beside which nothing shows.
    """

    metric: str
    live: bool
    curves: Curves


def runs_of(entry: Entry, library: Library, cell: Cell, need: str, drawing: Drawing) -> dict[str, dict[int, Run]]:
    """The runs of a setting by arm and seed; what is odd about them is noted."""
    found = {arm: library.find(cell, arm, need) for arm in entry.arms}
    mixed = mixed_settings({arm: by_seed.values() for arm, by_seed in found.items() if by_seed})
    if mixed:
        drawing.notes.append(f"{cell.name}: its runs differ in {', '.join(mixed)}")
    return found


def curves_of(runs: Mapping[str, Mapping[int, Run]], read: Callable[[Run], pd.Series]) -> Curves:
    """The curves of a setting's runs, of what is read of each; seeds and arms without a reading are left out."""
    warmup = max((run.config.minimizer.warmup for run in runs.get("s2ap", {}).values()), default=0)
    columns = {arm: {seed: read(run) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = {arm: pd.DataFrame(by_seed).dropna(axis="columns", how="all") for arm, by_seed in columns.items()}
    return Curves({arm: by_seed for arm, by_seed in arms.items() if not by_seed.empty}, warmup)


def stability_of(entry: Entry, library: Library, cell: Cell, drawing: Drawing) -> Curves:
    """h of each epoch's mask."""
    return curves_of(runs_of(entry, library, cell, "masks", drawing), lambda run: run.stability)


def spectra_of(entry: Entry, library: Library, cell: Cell, drawing: Drawing) -> list[Spectrum]:
    """lambda_max in the mode of BatchNorm that is asked for; of a spectrum that no run tracked there are no curves."""
    runs = runs_of(entry, library, cell, "curvature", drawing)
    found = []
    for name, live in (("lambda_max_live", True), ("lambda_max", False)):
        metric = f"{name}_{library.batch_norm}"
        found.append(Spectrum(metric, live, curves_of(runs, partial(Run.tracked, metric=metric))))
    return found


def draw_eigenvalues(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """lambda_max of both arms against the epoch, a panel for each sparsity."""
    drawing = _drawing(entry, library, _curvature_words(library))
    with plots.canvas(files, plots.COLUMN, 3.4) as figure:
        axes = _grid(figure, 2, -(-len(entry.cells) // 2))
        for panel, cell in zip(axes, entry.cells, strict=False):
            panel.set_title(f"{cell.budget} sparsity")
            _eigenvalues(panel, spectra_of(entry, library, cell, drawing), drawing, cell.budget)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(_lambda_max(library), fontsize=8)
        _shared_legend(figure, axes)
    return drawing


def draw_hamming(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """h of both arms' masks after the warm-up, a panel for each setting: a row for each sparsity."""
    drawing = _drawing(entry, library, "From the last warm-up epoch on; lower is more stable.")
    budgets = list(dict.fromkeys(cell.sparsity for cell in entry.cells))
    cells = sorted(entry.cells, key=lambda cell: budgets.index(cell.sparsity))
    columns = len(cells) // len(budgets)
    width = TEXT_WIDTH * min(1, (columns + 0.4) / 3)
    with plots.canvas(files, width, 1.5 * len(budgets) + 0.5) as figure:
        axes = _grid(figure, columns, len(budgets))
        for letter, panel, cell in zip(ascii_lowercase, axes, cells, strict=False):
            where = f"{METHODS[cell.method]}, {DATA.get(cell.data, cell.data)}, {cell.budget}"
            panel.set_title(f"({letter}) {_plain(where)}")
            _stability(panel, stability_of(entry, library, cell, drawing), drawing, where)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(H, fontsize=8)
        _shared_legend(figure, axes)
    return drawing


def draw_hamming_both(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """(a) h of both arms after the warm-up, a panel for each sparsity; (b) their differences."""
    drawing = _drawing(entry, library, "(a) from the last warm-up epoch on; (b) positive where S2AP is more stable.")
    found = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    with plots.canvas(files, TEXT_WIDTH, 3.2) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
        axes = _grid(left, 2, -(-len(found) // 2))
        for panel, (cell, curves) in zip(axes, found.items(), strict=False):
            panel.set_title(f"{cell.budget} sparsity")
            _stability(panel, curves, drawing, cell.budget)
        left.suptitle("(a)", fontsize=8)
        for panel in axes[-2:]:
            panel.set_xlabel("epoch")
        left.supylabel(H, fontsize=8)
        _shared_legend(left, axes, where="outside lower center")
        right.suptitle("(b)", fontsize=8)
        _differences(right.add_subplot(), found, drawing)
    return drawing


def draw_hamming_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """h(Orig.) - h(S2AP) over epochs, a panel for each network, a curve for each sparsity."""
    drawing = _drawing(entry, library, "Positive where S2AP is more stable.")
    networks = list(dict.fromkeys(cell.network for cell in entry.cells))
    with plots.canvas(files, TEXT_WIDTH, 2.7) as figure:
        axes = _grid(figure, len(networks), 1)
        for letter, panel, network in zip(ascii_lowercase, axes, networks, strict=False):
            cells = [cell for cell in entry.cells if cell.network == network]
            found = {cell: stability_of(entry, library, cell, drawing) for cell in cells}
            panel.set_title(f"({letter}) {NETWORKS[network]}")
            _differences(panel, found, drawing, f"{NETWORKS[network]}, ")
    return drawing


def draw_loss_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Loss difference at one rho as bars by sparsity, a panel for each network and method."""
    (rho,) = entry.rho
    drawing = _drawing(entry, library, f"Loss difference (Eq. 12) at ρ = {rho:g}; lower is flatter.")
    panels = dict.fromkeys((cell.network, cell.method) for cell in entry.cells)
    with plots.canvas(files, TEXT_WIDTH, 1.9 * (-(-len(panels) // 2)) + 0.3) as figure:
        axes = _grid(figure, 2, -(-len(panels) // 2))
        for panel, (network, method) in zip(axes, panels, strict=False):
            cells = [cell for cell in entry.cells if (cell.network, cell.method) == (network, method)]
            title = f"{NETWORKS[network]}, {METHODS[method]}"
            panel.set_title(title)
            readings = {}
            for cell in cells:
                runs = {arm: library.find(cell, arm, "sharpness") for arm in entry.arms}
                readings[cell] = {arm: loss_difference_at(by_seed, rho) for arm, by_seed in runs.items()}
            metric = f"{entry.metrics[-1]} at {rho:g}"
            _bars(panel, readings, drawing, title, metric, ylabel="loss difference", numbers="%.2g", numbers_size=5.5)
        _shared_legend(figure, axes)
    return drawing


def draw_effects(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """(a) robust accuracy, (b) differences of h, (c) lambda_max: each for every sparsity."""
    drawing = _drawing(
        entry, library, f"(b) positive where S2AP is more stable. (c) Without bands. {_curvature_words(library)}"
    )
    stage = str(entry.stage)
    evaluated = {
        cell: {
            arm: {seed: evaluation for seed, (_, evaluation) in evaluations_of(library, cell, arm, stage).items()}
            for arm in entry.arms
        }
        for cell in entry.cells
    }
    drawing.caption += attacks(entry, [Line(cell, {}, {}, evaluations) for cell, evaluations in evaluated.items()])
    masks = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    curvature = {cell: spectra_of(entry, library, cell, drawing) for cell in entry.cells}
    with plots.canvas(files, TEXT_WIDTH, 2.7) as figure:
        a, b, c = _grid(figure, 3, 1)
        readings = {
            cell: {arm: accuracy(by_seed, entry.metrics[-1]) for arm, by_seed in arms.items()}
            for cell, arms in evaluated.items()
        }
        metric = entry.metrics[-1]
        _bars(a, readings, drawing, "a", metric, ylabel="robust accuracy (%)", numbers="%.1f", numbers_size=5)
        _legend_below(a)
        _differences(b, masks, drawing, "b, ")
        _all_eigenvalues(c, curvature, drawing)
        c.set_ylabel(_lambda_max(library))
        for letter, panel in zip("abc", (a, b, c), strict=True):
            panel.set_title(f"({letter})")
            panel.set_xlabel("sparsity" if panel is a else "epoch")
    return drawing


def draw_gammas(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Robust accuracy of the raw masks against gamma, a curve for each network."""
    (arm,) = entry.arms
    stage, metric = str(entry.stage), entry.metrics[-1]
    drawing = _drawing(entry, library, "Masks on the pretrained weights, before finetuning.", with_gammas=False)
    lines = []
    with plots.canvas(files, plots.COLUMN, 2.5) as figure:
        axes = figure.add_subplot()
        for index, cell in enumerate(entry.cells):
            by_gamma = {}
            for gamma, runs in library.find_gammas(cell, arm, f"evaluate-{stage}").items():
                read = {seed: run.evaluation(stage) for seed, run in runs.items()}
                evaluations = {seed: found for seed, found in read.items() if found is not None}
                lines.append(Line(cell, {}, {}, {arm: evaluations}))
                if evaluations:
                    by_gamma[gamma] = accuracy(evaluations, metric)
            if by_gamma:
                _reading_curve(axes, by_gamma, NETWORKS[cell.network], metric, drawing, plots.look(index))
        if axes.lines or axes.containers:
            axes.set_xscale("log")
            ticks = sorted(set(drawing.data["x"]))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            axes.legend()
        else:
            plots.blank(axes, NOT_RUN)
        axes.set_xlabel("γ")
        axes.set_ylabel("robust accuracy of the mask (%)")
    drawing.caption += attacks(entry, lines)
    return drawing


Renderer = Callable[[Entry, Library, Sequence[Path]], Drawing]

FIGURES: dict[str, Renderer] = {
    "effects": draw_effects,
    "eigenvalue": draw_eigenvalues,
    "loss-difference": draw_loss_difference,
    "hamming": draw_hamming,
    "hamming-both": draw_hamming_both,
    "hamming-difference": draw_hamming_difference,
    "gamma": draw_gammas,
}


def _drawing(entry: Entry, library: Library, said: str, *, with_gammas: bool = True) -> Drawing:
    spread = (
        "Bands and error bars: one standard deviation over seeds; with one seed an accuracy has its 95 % Wilson "
        "interval over images, all else none."
    )
    return Drawing([said, spread, *(gammas(entry, library) if with_gammas else [])])


def _lambda_max(library: Library) -> str:
    return rf"$\lambda_{{max}}$ (BatchNorm: {library.batch_norm})"


def _curvature_words(library: Library) -> str:
    return (
        f"Mean over each epoch's readings; BatchNorm: {library.batch_norm}; warm-up shaded. With markers: over the "
        "scores of live channels, which keep a weight; thin: over all scores, as the paper defines it."
    )


def _grid(figure: Any, columns: int, rows: int) -> list[Axes]:
    return [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def _plain(text: str) -> str:
    """A text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _integer_epochs(panel: Axes) -> None:
    panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=5))


def _eigenvalues(panel: Axes, found: Sequence[Spectrum], drawing: Drawing, name: str) -> None:
    if not _drawn(found):
        plots.blank(panel, NOT_RUN)
        return
    plots.shade_warmup(panel, found[0].curves.warmup)
    for spectrum in found:
        look, said = ({}, "") if spectrum.live else (THIN, ", all scores")
        for arm, by_seed in spectrum.curves.arms.items():
            style = {**SERIES[arm], **look}
            plots.seed_curves(panel, by_seed, label=f"{ARMS[arm]}{said}", style=style, band=spectrum.live)
            drawing.add(name, arm, spectrum.metric, by_seed)
    _integer_epochs(panel)
    _decades(panel, _drawn(found))


def _stability(panel: Axes, found: Curves, drawing: Drawing, name: str) -> None:
    if not found.arms:
        plots.blank(panel, NOT_RUN)
        return
    for arm, by_seed in found.arms.items():
        later = by_seed[by_seed.index >= found.warmup]
        plots.seed_curves(panel, later, label=ARMS[arm], style=SERIES[arm])
        drawing.add(name, arm, "h", later)
    _integer_epochs(panel)


def _differences(panel: Axes, found: Mapping[Cell, Curves], drawing: Drawing, where: str = "") -> None:
    drawn = {cell: curves.difference for cell, curves in found.items() if not curves.difference.empty}
    if not drawn:
        plots.blank(panel, NOT_RUN)
        return
    for index, cell in enumerate(found):
        if cell in drawn:
            plots.seed_curves(panel, drawn[cell], label=cell.budget, style=plots.look(index))
            drawing.add(f"{where}{cell.budget}", "orig - s2ap", "h", drawn[cell])
    warmup = max(curves.warmup for curves in found.values())
    if warmup:
        panel.axvline(warmup, color="0.3", linestyle=":", linewidth=1, label="end of warm-up")
    plots.stability_halves(panel, first="Orig.", second="S2AP")
    panel.set_xlabel("epoch")
    _integer_epochs(panel)
    _legend_below(panel)


def _all_eigenvalues(panel: Axes, found: Mapping[Cell, Sequence[Spectrum]], drawing: Drawing) -> None:
    """Every sparsity in one panel: told apart by colour and marker, the arms by line and filling."""
    spectra = [spectrum for of_cell in found.values() for spectrum in of_cell]
    if not _drawn(spectra):
        plots.blank(panel, NOT_RUN)
        return
    plots.shade_warmup(panel, max(spectrum.curves.warmup for spectrum in spectra))
    for index, (cell, of_cell) in enumerate(found.items()):
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
    _legend_below(panel)


def _drawn(spectra: Iterable[Spectrum]) -> list[pd.DataFrame]:
    return [by_seed for spectrum in spectra for by_seed in spectrum.curves.arms.values()]


def _decades(panel: Axes, drawn: Iterable[pd.DataFrame]) -> None:
    plots.decades(panel, np.concatenate([by_seed.mean(axis=1).dropna().to_numpy() for by_seed in drawn]))


def _bars(
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
    """A group for each sparsity, a bar for each arm; without runs there is no bar but the word."""
    measured = {
        cell: {arm: reading for arm, reading in arms.items() if reading.by_seed} for cell, arms in readings.items()
    }
    if not any(measured.values()):
        plots.blank(panel, NOT_RUN)
        return
    arms = ("orig", "s2ap")
    means = [[found[arm].mean if arm in found else np.nan for arm in arms] for found in measured.values()]
    table = pd.DataFrame(means, [cell.budget for cell in measured], [ARMS[arm] for arm in arms], dtype=float)
    unknown = (np.nan, np.nan)
    errors = {
        ARMS[arm]: np.array([found[arm].error if arm in found else unknown for found in measured.values()]).T
        for arm in arms
    }
    plots.bars(panel, table, ylabel=ylabel, errors=errors, numbers=numbers, numbers_size=numbers_size)
    panel.legend().remove()
    for position, (cell, found) in enumerate(measured.items()):
        if not found:
            panel.text(position, 0, NOT_RUN, rotation=90, ha="center", va="bottom", color="0.4",
                       transform=panel.get_xaxis_transform())  # fmt: skip
        for arm, reading in found.items():
            drawing.add_reading(name, arm, metric, cell.budget, reading)


def _reading_curve(
    panel: Axes, readings: Mapping[float, Reading], label: str, metric: str, drawing: Drawing, style: Mapping[str, Any]
) -> None:
    means = [reading.mean for reading in readings.values()]
    errors = np.array([reading.error for reading in readings.values()]).T
    panel.errorbar(list(readings), means, yerr=errors, label=label, capsize=2, elinewidth=0.7, **style)
    for gamma, reading in readings.items():
        drawing.add_reading(label, "s2ap", metric, gamma, reading)


def _legend_below(panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        panel.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, columnspacing=1.0)


def _shared_legend(figure: Any, axes: Iterable[Axes], where: str = "outside upper center") -> None:
    """One legend for all panels, of what any of them shows."""
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc=where, ncols=min(len(entries), 3))
