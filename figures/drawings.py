"""The figures: a renderer for each kind, that draws, writes the pictures and returns what it drew."""

from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase

import matplotlib as mpl

from figures import panels
from figures.captions import attacks, gammas
from figures.catalogue import DATA, METHODS, NETWORKS, Entry
from figures.curves import Drawing, spectra_of, stability_of
from figures.matching import Library
from figures.numbers import Line, accuracy, evaluations_of, loss_difference_at
from figures.wording import NOT_RUN
from s2ap_diag.output import plots

TEXT_WIDTH = 2.1 * plots.COLUMN
H = "Hamming distance h"


def draw_eigenvalues(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw lambda_max of both arms against the epoch, a panel for each sparsity."""
    unconverged = f"Open markers: the mean {panels.UNCONVERGED}, in one seed at least."
    drawing = _drawing(entry, library, f"{_curvature_words(library)} {unconverged}")
    with plots.canvas(files, plots.COLUMN, 3.4) as figure:
        axes = panels.grid(figure, 2, -(-len(entry.cells) // 2))
        for panel, cell in zip(axes, entry.cells, strict=False):
            panel.set_title(f"{cell.budget} sparsity")
            panels.eigenvalues(panel, spectra_of(entry, library, cell, drawing), drawing, cell.budget)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(_lambda_max(library), fontsize=8)
        panels.shared_legend(figure, axes)
    return drawing


def draw_hamming(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw h of both arms' masks after the warm-up, a panel for each setting: a row for each sparsity."""
    drawing = _drawing(entry, library, "From the last warm-up epoch on; lower is more stable.")
    budgets = list(dict.fromkeys(cell.sparsity for cell in entry.cells))
    cells = sorted(entry.cells, key=lambda cell: budgets.index(cell.sparsity))
    columns = len(cells) // len(budgets)
    width = TEXT_WIDTH * min(1, (columns + 0.4) / 3)
    with plots.canvas(files, width, 1.5 * len(budgets) + 0.5) as figure:
        axes = panels.grid(figure, columns, len(budgets))
        for letter, panel, cell in zip(ascii_lowercase, axes, cells, strict=False):
            where = f"{METHODS[cell.method]}, {DATA.get(cell.data, cell.data)}, {cell.budget}"
            panel.set_title(f"({letter}) {_plain(where)}")
            panels.stability(panel, stability_of(entry, library, cell, drawing), drawing, where)
        figure.supxlabel("epoch", fontsize=8)
        figure.supylabel(H, fontsize=8)
        panels.shared_legend(figure, axes)
    return drawing


def draw_hamming_both(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw (a) h of both arms after the warm-up, a panel for each sparsity; (b) their differences."""
    drawing = _drawing(entry, library, "(a) from the last warm-up epoch on; (b) positive where S2AP is more stable.")
    curves_of = {cell: stability_of(entry, library, cell, drawing) for cell in entry.cells}
    with plots.canvas(files, TEXT_WIDTH, 3.2) as figure:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
        axes = panels.grid(left, 2, -(-len(curves_of) // 2))
        for panel, (cell, curves) in zip(axes, curves_of.items(), strict=False):
            panel.set_title(f"{cell.budget} sparsity")
            panels.stability(panel, curves, drawing, cell.budget)
        left.suptitle("(a)", fontsize=8)
        for panel in axes[-2:]:
            panel.set_xlabel("epoch")
        left.supylabel(H, fontsize=8)
        panels.shared_legend(left, axes, where="outside lower center")
        right.suptitle("(b)", fontsize=8)
        panels.differences(right.add_subplot(), curves_of, drawing)
    return drawing


def draw_hamming_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw h(Orig.) - h(S2AP) over epochs, a panel for each network, a curve for each sparsity."""
    drawing = _drawing(entry, library, "Positive where S2AP is more stable.")
    networks = list(dict.fromkeys(cell.network for cell in entry.cells))
    with plots.canvas(files, TEXT_WIDTH, 2.7) as figure:
        axes = panels.grid(figure, len(networks), 1)
        for letter, panel, network in zip(ascii_lowercase, axes, networks, strict=False):
            cells = [cell for cell in entry.cells if cell.network == network]
            curves_of = {cell: stability_of(entry, library, cell, drawing) for cell in cells}
            panel.set_title(f"({letter}) {NETWORKS[network]}")
            panels.differences(panel, curves_of, drawing, f"{NETWORKS[network]}, ")
    return drawing


def draw_loss_difference(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw the loss difference at one rho as bars by sparsity, a panel for each network and method."""
    (rho,) = entry.rho
    drawing = _drawing(entry, library, f"Loss difference (Eq. 12) at ρ = {rho:g}; lower is flatter.")
    pairs = dict.fromkeys((cell.network, cell.method) for cell in entry.cells)
    with plots.canvas(files, TEXT_WIDTH, 1.9 * (-(-len(pairs) // 2)) + 0.3) as figure:
        axes = panels.grid(figure, 2, -(-len(pairs) // 2))
        for panel, (network, method) in zip(axes, pairs, strict=False):
            cells = [cell for cell in entry.cells if (cell.network, cell.method) == (network, method)]
            title = f"{NETWORKS[network]}, {METHODS[method]}"
            panel.set_title(title)
            readings = {}
            for cell in cells:
                runs = {arm: library.find(cell, arm, "sharpness") for arm in entry.arms}
                readings[cell] = {arm: loss_difference_at(by_seed, rho) for arm, by_seed in runs.items()}
            metric = f"{entry.metrics[-1]} at {rho:g}"
            panels.bars(
                panel, readings, drawing, title, metric, ylabel="loss difference", numbers="%.2g", numbers_size=5.5
            )
        panels.shared_legend(figure, axes)
    return drawing


def draw_effects(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw (a) robust accuracy, (b) differences of h, (c) lambda_max: each for every sparsity."""
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
        a, b, c = panels.grid(figure, 3, 1)
        readings = {
            cell: {arm: accuracy(by_seed, entry.metrics[-1]) for arm, by_seed in arms.items()}
            for cell, arms in evaluated.items()
        }
        metric = entry.metrics[-1]
        panels.bars(a, readings, drawing, "a", metric, ylabel="robust accuracy (%)", numbers="%.1f", numbers_size=5)
        panels.legend_below(a)
        panels.differences(b, masks, drawing, "b, ")
        panels.all_eigenvalues(c, curvature, drawing)
        c.set_ylabel(_lambda_max(library))
        for letter, panel in zip("abc", (a, b, c), strict=True):
            panel.set_title(f"({letter})")
            panel.set_xlabel("sparsity" if panel is a else "epoch")
    return drawing


def draw_gammas(entry: Entry, library: Library, files: Sequence[Path]) -> Drawing:
    """Draw robust accuracy of the raw masks against gamma, a curve for each network."""
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
                evaluations = {seed: evaluation for seed, evaluation in read.items() if evaluation is not None}
                lines.append(Line(cell, {}, {}, {arm: evaluations}))
                if evaluations:
                    by_gamma[gamma] = accuracy(evaluations, metric)
            if by_gamma:
                panels.reading_curve(axes, by_gamma, NETWORKS[cell.network], metric, drawing, plots.look(index))
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


def _plain(text: str) -> str:
    """Escape what matplotlib takes for mathematics."""
    return text.replace("$", r"\$")
