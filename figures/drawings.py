"""The figures: a renderer for each kind, that draws, writes the pictures and returns what it drew."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

TEXT_WIDTH = 2.1 * plots.COLUMN
DATA_COLUMNS = ("panel", "series", "x", "seed", "value", "interval_low", "interval_high")
H = "Hamming distance h"
SERIES = {"orig": plots.look(0), "s2ap": plots.look(1)}


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

    def add(self, panel: str, series: str, by_seed: pd.DataFrame) -> None:
        """Record curves, a column for each seed."""
        for seed in by_seed:
            drawn = by_seed[seed].dropna()
            self.rows += [(panel, series, x, seed, y, None, None) for x, y in drawn.items()]

    def add_reading(self, panel: str, series: str, x: Any, reading: Reading) -> None:
        """Record one point or bar."""
        for seed, value in reading.by_seed.items():
            self.rows.append((panel, series, x, seed, value, *reading.intervals.get(seed, (None, None))))


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


def curves_of(entry: Entry, library: Library, cell: Cell, need: str, drawing: Drawing) -> Curves:
    """The curves of a setting; what is odd about its runs is noted."""
    runs = {arm: library.find(cell, arm, need) for arm in entry.arms}
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    mixed = mixed_settings({arm: by_seed.values() for arm, by_seed in runs.items()})
    if mixed:
        drawing.notes.append(f"{cell.name}: its runs differ in {', '.join(mixed)}")
    warmup = max((run.config.minimizer.warmup for run in runs.get("s2ap", {}).values()), default=0)
    read = {arm: {seed: library.read(run, need) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = {arm: pd.DataFrame(columns).dropna(axis="columns", how="all") for arm, columns in read.items()}
    return Curves({arm: by_seed for arm, by_seed in arms.items() if not by_seed.empty}, warmup)


def draw_eigenvalues(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """lambda_max of both arms against the epoch, a panel for each sparsity."""
    drawing = _drawing(entry, library, _curvature_words(library))
    with plots.canvas(files, plots.COLUMN, 3.2) as figure:
        axes = _grid(figure, 2, -(-len(entry.cells) // 2))
        for panel, cell in zip(axes, entry.cells, strict=False):
            found = curves_of(entry, library, cell, "curvature", drawing)
            panel.set_title(f"{cell.budget} sparsity")
            _eigenvalues(panel, found, drawing, cell.budget)
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
            _stability(panel, curves_of(entry, library, cell, "masks", drawing), drawing, where)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(H, fontsize=8)
        _shared_legend(figure, axes)
    return drawing


def draw_hamming_both(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """(a) h of both arms after the warm-up, a panel for each sparsity; (b) their differences."""
    drawing = _drawing(entry, library, "(a) from the last warm-up epoch on; (b) positive where S2AP is more stable.")
    found = {cell: curves_of(entry, library, cell, "masks", drawing) for cell in entry.cells}
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
            found = {cell: curves_of(entry, library, cell, "masks", drawing) for cell in cells}
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
            _bars(panel, readings, drawing, title, ylabel="loss difference", numbers="%.2g", numbers_size=5.5)
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
    masks = {cell: curves_of(entry, library, cell, "masks", drawing) for cell in entry.cells}
    curvature = {cell: curves_of(entry, library, cell, "curvature", drawing) for cell in entry.cells}
    with plots.canvas(files, TEXT_WIDTH, 2.7) as figure:
        a, b, c = _grid(figure, 3, 1)
        readings = {
            cell: {arm: accuracy(by_seed, entry.metrics[-1]) for arm, by_seed in arms.items()}
            for cell, arms in evaluated.items()
        }
        _bars(a, readings, drawing, "a", ylabel="robust accuracy (%)", numbers="%.1f", numbers_size=5)
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
                _reading_curve(axes, by_gamma, NETWORKS[cell.network], drawing, plots.look(index))
        if axes.lines or axes.containers:
            axes.set_xscale("log")
            ticks = sorted({row[2] for row in drawing.rows})
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
    return f"Mean over each epoch's readings; BatchNorm: {library.batch_norm}; warm-up shaded."


def _grid(figure: Any, columns: int, rows: int) -> list[Axes]:
    return [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def _plain(text: str) -> str:
    """A text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def _integer_epochs(panel: Axes) -> None:
    panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=5))


def _arm_curves(panel: Axes, found: Curves, drawing: Drawing, name: str) -> None:
    if not found.arms:
        plots.blank(panel, NOT_RUN)
        return
    plots.shade_warmup(panel, found.warmup)
    for arm, by_seed in found.arms.items():
        plots.seed_curves(panel, by_seed, label=ARMS[arm], style=SERIES[arm])
        drawing.add(name, arm, by_seed)
    _integer_epochs(panel)


def _eigenvalues(panel: Axes, found: Curves, drawing: Drawing, name: str) -> None:
    _arm_curves(panel, found, drawing, name)
    if found.arms:
        _decades(panel, found.arms.values())


def _stability(panel: Axes, found: Curves, drawing: Drawing, name: str) -> None:
    later = {arm: by_seed[by_seed.index >= found.warmup] for arm, by_seed in found.arms.items()}
    _arm_curves(panel, Curves(later, 0), drawing, name)


def _differences(panel: Axes, found: Mapping[Cell, Curves], drawing: Drawing, where: str = "") -> None:
    drawn = {cell: curves.difference for cell, curves in found.items() if not curves.difference.empty}
    if not drawn:
        plots.blank(panel, NOT_RUN)
        return
    for index, cell in enumerate(found):
        if cell in drawn:
            plots.seed_curves(panel, drawn[cell], label=cell.budget, style=plots.look(index))
            drawing.add(f"{where}{cell.budget}", "orig - s2ap", drawn[cell])
    warmup = max(curves.warmup for curves in found.values())
    if warmup:
        panel.axvline(warmup, color="0.3", linestyle=":", linewidth=1, label="end of warm-up")
    plots.stability_halves(panel, first="Orig.", second="S2AP")
    panel.set_xlabel("epoch")
    _integer_epochs(panel)
    _legend_below(panel)


def _all_eigenvalues(panel: Axes, found: Mapping[Cell, Curves], drawing: Drawing) -> None:
    """Every sparsity in one panel: told apart by colour and marker, the arms by line and filling."""
    with_runs = [curves for curves in found.values() if curves.arms]
    if not with_runs:
        plots.blank(panel, NOT_RUN)
        return
    plots.shade_warmup(panel, max(curves.warmup for curves in with_runs))
    for index, (cell, curves) in enumerate(found.items()):
        for arm, by_seed in curves.arms.items():
            style = plots.look(index) | {"linestyle": "-" if arm == "orig" else "--"}
            filling = {} if arm == "orig" else {"markerfacecolor": "white"}
            label = f"{cell.budget} {ARMS[arm]}"
            plots.seed_curves(panel, by_seed, label=label, style={**style, **filling}, band=False)
            drawing.add(f"c, {cell.budget}", arm, by_seed)
    _decades(panel, [by_seed for curves in with_runs for by_seed in curves.arms.values()])
    _integer_epochs(panel)
    _legend_below(panel)


def _decades(panel: Axes, drawn: Iterable[pd.DataFrame]) -> None:
    plots.decades(panel, np.concatenate([by_seed.mean(axis=1).dropna().to_numpy() for by_seed in drawn]))


def _bars(
    panel: Axes,
    readings: Mapping[Cell, Mapping[str, Reading]],
    drawing: Drawing,
    name: str,
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
            drawing.add_reading(name, arm, cell.budget, reading)


def _reading_curve(
    panel: Axes, readings: Mapping[float, Reading], label: str, drawing: Drawing, style: Mapping[str, Any]
) -> None:
    means = [reading.mean for reading in readings.values()]
    errors = np.array([reading.error for reading in readings.values()]).T
    panel.errorbar(list(readings), means, yerr=errors, label=label, capsize=2, elinewidth=0.7, **style)
    for gamma, reading in readings.items():
        drawing.add_reading(label, "s2ap", gamma, reading)


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
        figure.legend(entries.values(), entries.keys(), loc=where, ncols=len(entries))
