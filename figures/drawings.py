"""The figures: a renderer for each kind, that draws, writes the pictures and returns what it drew."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import panels
from figures.captions import attacks, gammas
from figures.catalogue import DATA, METHODS, Cell, Entry, in_words
from figures.curves import Curves, Drawing, spectra_of, stability_of
from figures.matching import Library
from figures.numbers import Line, Reading, accuracy, evaluations_of, loss_difference_at
from s2ap_diag.output import plots

TEXT_WIDTH = 2.1 * plots.COLUMN
H = "Hamming distance h"


def draw_eigenvalues(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw lambda_max of both arms against the epoch, a panel for each sparsity."""
    unconverged = f"Open markers: the mean {panels.UNCONVERGED}, in one seed at least."
    drawing = _drawing(entry, library, f"{_curvature_words(library)} {unconverged}")
    spectra = {cell: spectra_of(entry, library, cell, drawing) for cell in entry.cells}
    shown, absent = _split(spectra, panels.was_drawn, plots.COLUMN)
    with plots.canvas(files, plots.COLUMN, panels.height_of(len(shown), 2, 1.4, 0.6, absent)) as figure:
        axes = panels.grid(figure, min(2, max(len(shown), 1)), len(shown), absent)
        for panel, (cell, of_cell) in zip(axes, shown.items(), strict=True):
            panel.set_title(_budget(cell))
            panels.eigenvalues(panel, of_cell, drawing, cell.budget)
        _label(figure, axes, _lambda_max(library))
    return drawing


def draw_hamming(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw h of both arms' masks after the warm-up, a panel for each setting: a row for each sparsity."""
    drawing = _drawing(entry, library, "From the last warm-up epoch on; lower is more stable.")
    budgets = list(dict.fromkeys(cell.sparsity for cell in entry.cells))
    cells = sorted(entry.cells, key=lambda cell: budgets.index(cell.sparsity))
    curves = {cell: stability_of(entry, library, cell, drawing) for cell in cells}
    columns = len(cells) // len(budgets)
    width = TEXT_WIDTH * min(1, (columns + 0.4) / 3)
    shown, absent = _split(curves, lambda of_cell: bool(of_cell.arms), width, _method_and_data)
    columns = min(columns, max(len(shown), 1))
    with plots.canvas(files, width, panels.height_of(len(shown), columns, 1.5, 0.5, absent)) as figure:
        axes = panels.grid(figure, columns, len(shown), absent)
        for letter, panel, (cell, of_cell) in zip(ascii_lowercase, axes, shown.items(), strict=False):
            panel.set_title(f"({letter}) {_plain(_where(cell))}")
            panels.stability(panel, of_cell, drawing, _where(cell))
        _label(figure, axes, H)
    return drawing


def draw_hamming_both(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw (a) h of both arms after the warm-up, a panel for each sparsity; (b) their differences."""
    drawing = _drawing(entry, library, "(a) from the last warm-up epoch on; (b) positive where S2AP is more stable.")
    curves_of = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    shown, absent = _split(curves_of, lambda curves: bool(curves.arms), TEXT_WIDTH / 2)
    with plots.canvas(files, TEXT_WIDTH, panels.height_of(len(shown), 2, 1.4, 0.6, absent)) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0] if shown else (figure, None)
        axes = panels.grid(left, min(2, max(len(shown), 1)), len(shown), absent)
        for panel, (cell, curves) in zip(axes, shown.items(), strict=True):
            panel.set_title(_budget(cell))
            panels.stability(panel, curves, drawing, cell.budget)
        for panel in axes[-2:]:
            panel.set_xlabel("epoch")
        if shown:
            left.suptitle("(a)", fontsize=8)
            left.supylabel(H, fontsize=8)
            panels.shared_legend(left, axes, where="outside lower center")
        if right is not None and _has_difference(shown.values()):
            right.suptitle("(b)", fontsize=8)
            panels.differences(right.add_subplot(), curves_of, drawing)
    return drawing


def draw_hamming_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw h(Orig.) - h(S2AP) over epochs, a panel for each network, a curve for each sparsity."""
    drawing = _drawing(entry, library, "Positive where S2AP is more stable.")
    curves = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    names = list(dict.fromkeys(in_words(cell.network) for cell in curves))
    networks = {name: {cell: of for cell, of in curves.items() if in_words(cell.network) == name} for name in names}
    compared, absent = _split(curves, lambda of_cell: _has_difference([of_cell]), TEXT_WIDTH / 2, _network)
    shown = {name: of_network for name, of_network in networks.items() if any(cell in compared for cell in of_network)}
    width = TEXT_WIDTH if len(shown) > 1 else TEXT_WIDTH / 2
    with plots.canvas(files, width, panels.height_of(len(shown), len(networks), 2.1, 0.6, absent)) as figure:
        axes = panels.grid(figure, max(len(shown), 1), len(shown), absent)
        for letter, panel, (name, of_network) in zip(ascii_lowercase, axes, shown.items(), strict=False):
            panel.set_title(f"({letter}) {_plain(name)}")
            panels.differences(panel, of_network, drawing, f"{name}, ")
    return drawing


def draw_loss_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw the loss difference at one rho as bars by sparsity, a panel for each network and method."""
    (rho,) = entry.rho
    drawing = _drawing(entry, library, f"Loss difference (Eq. 12) at ρ = {rho:g}; lower is flatter.")
    readings = {
        cell: {arm: loss_difference_at(library.find(cell, arm, "sharpness"), rho) for arm in entry.arms}
        for cell in entry.cells
    }
    shown, absent = _split(readings, _any_reading, TEXT_WIDTH / 2, _pair)
    pairs = list(dict.fromkeys(map(_pair, shown)))
    width = TEXT_WIDTH if len(pairs) > 1 else TEXT_WIDTH / 2
    with plots.canvas(files, width, panels.height_of(len(pairs), 2, 1.9, 0.3, absent)) as figure:
        axes = panels.grid(figure, min(2, max(len(pairs), 1)), len(pairs), absent)
        for panel, title in zip(axes, pairs, strict=True):
            panel.set_title(_plain(title))
            of_pair = {cell: by_arm for cell, by_arm in shown.items() if _pair(cell) == title}
            metric = f"{entry.metrics[-1]} at {rho:g}"
            panels.bars(
                panel, of_pair, drawing, title, metric, ylabel="loss difference", numbers="%.2g", numbers_size=5.5
            )
        panels.shared_legend(figure, axes)
    return drawing


def draw_effects(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw (a) robust accuracy, (b) differences of h, (c) lambda_max: each for every sparsity, where there are runs."""
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
    metric = entry.metrics[-1]
    readings = {
        cell: {arm: accuracy(by_seed, metric) for arm, by_seed in arms.items()} for cell, arms in evaluated.items()
    }
    masks = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    curvature = {cell: spectra_of(entry, library, cell, drawing) for cell in entry.cells}

    def draw_accuracy(panel: Axes) -> None:
        panels.bars(panel, readings, drawing, "a", metric, ylabel="robust accuracy (%)", numbers="%.1f", numbers_size=5)
        panels.legend_below(panel)
        panel.set_xlabel("sparsity")

    def draw_curvature(panel: Axes) -> None:
        panels.all_eigenvalues(panel, curvature, drawing)
        panel.set_ylabel(_lambda_max(library))
        panel.set_xlabel("epoch")

    drawn: dict[str, Callable[[Axes], None]] = {}
    if any(map(_any_reading, readings.values())):
        drawn["a"] = draw_accuracy
    if _has_difference(masks.values()):
        drawn["b"] = lambda panel: panels.differences(panel, masks, drawing, "b, ")
    if any(map(panels.was_drawn, curvature.values())):
        drawn["c"] = draw_curvature
    there = [c for c in entry.cells if _any_reading(readings[c]) or masks[c].arms or panels.was_drawn(curvature[c])]
    absent = panels.not_run([cell for cell in entry.cells if cell not in there], TEXT_WIDTH)
    with plots.canvas(files, TEXT_WIDTH, panels.height_of(len(drawn), 3, 2.7, 0, absent)) as figure:
        axes = panels.grid(figure, max(len(drawn), 1), len(drawn), absent)
        for panel, (letter, draw) in zip(axes, drawn.items(), strict=True):
            draw(panel)
            panel.set_title(f"({letter})")
    return drawing


def draw_gammas(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw robust accuracy of the raw masks against gamma, a curve for each network."""
    (arm,) = entry.arms
    stage, metric = str(entry.stage), entry.metrics[-1]
    drawing = _drawing(entry, library, "Masks on the pretrained weights, before finetuning.", with_gammas=False)
    lines, curves = [], {}
    for cell in entry.cells:
        curves[cell] = by_gamma = {}
        for gamma, runs in library.find_gammas(cell, arm, f"evaluate-{stage}").items():
            read = {seed: run.evaluation(stage) for seed, run in runs.items()}
            evaluations = {seed: evaluation for seed, evaluation in read.items() if evaluation is not None}
            lines.append(Line(cell, {}, {}, {arm: evaluations}))
            if evaluations:
                by_gamma[gamma] = accuracy(evaluations, metric)
    names = {cell: in_words(cell.network) for cell in curves}
    if len(set(names.values())) < len(names):
        names = {cell: f"{_pair(cell)}, {cell.budget}" for cell in curves}
    shown, absent = _split(curves, bool, plots.COLUMN, _pair)
    with plots.canvas(files, plots.COLUMN, panels.height_of(bool(shown), 1, 2.5, 0, absent)) as figure:
        for axes in panels.grid(figure, 1, int(bool(shown)), absent):
            for index, cell in enumerate(curves):
                if cell in shown:
                    panels.reading_curve(axes, shown[cell], names[cell], metric, drawing, plots.look(index))
            axes.set_xscale("log")
            ticks = sorted(set(drawing.data["x"]))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
            axes.legend()
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


Value = TypeVar("Value")


def _split(
    values: Mapping[Cell, Value],
    there: Callable[[Value], bool],
    width: float,
    name: Callable[[Cell], str] = lambda cell: "",
) -> tuple[dict[Cell, Value], list[str]]:
    """Select the settings of which something is there, and name the others in lines for so many inches."""
    shown = {cell: value for cell, value in values.items() if there(value)}
    return shown, panels.not_run([cell for cell in values if cell not in shown], width, name)


def _any_reading(by_arm: Mapping[str, Reading]) -> bool:
    return any(reading.by_seed for reading in by_arm.values())


def _has_difference(curves: Iterable[Curves]) -> bool:
    return any(not of_cell.difference.empty for of_cell in curves)


def _network(cell: Cell) -> str:
    return in_words(cell.network)


def _where(cell: Cell) -> str:
    return f"{_method_and_data(cell)}, {cell.budget}"


def _method_and_data(cell: Cell) -> str:
    return f"{METHODS[cell.method]}, {DATA[cell.data]}"


def _budget(cell: Cell) -> str:
    return cell.budget if cell.sparsity is None else f"{cell.budget} sparsity"


def _pair(cell: Cell) -> str:
    return f"{in_words(cell.network)}, {METHODS[cell.method]}"


def _label(figure: Figure, axes: Sequence[Axes], ylabel: str) -> None:
    """Label the axes of panels over epochs, and put their legend; nothing where there are none."""
    if axes:
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(ylabel, fontsize=8)
        panels.shared_legend(figure, axes)


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


def _plain(text: str) -> str:
    """Escape what matplotlib takes for mathematics."""
    return text.replace("$", r"\$")
