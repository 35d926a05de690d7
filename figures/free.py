"""The paper's kinds of table and figure, of settings that it does not have: another sparsity, network or data set."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from figures.afterwards import loss_differences
from figures.catalogue import METHODS, Cell, Entry, in_words
from figures.matching import Library, PlacedRun
from s2ap_core.errors import InputError
from s2ap_core.runs import course

ACCURACIES = ("clean_accuracy", "robust_accuracy")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "effects": (
        "What S2AP does to accuracy, stability and sharpness",
        {"stage": "finetune", "metrics": ACCURACIES[1:]},
    ),
    "eigenvalue": ("Largest score-space eigenvalue over the epochs of the search", {}),
    "hamming-both": ("Hamming distance of the masks", {"panels": ("sparsity",)}),
}
"""Figures of a network and method, with what the catalogue would say of them."""


def free_entries(library: Library, catalogue: Sequence[Entry]) -> list[Entry]:
    """Make entries of the settings that runs are of and the catalogue does not have; each shows at least one run.

    Raises:
        InputError: if the catalogue has them all.
    """
    known = {cell for entry in catalogue for cell in entry.cells}
    runs: dict[Cell, list[PlacedRun]] = defaultdict(list)
    for placed in library.placed_runs:
        if placed.cell not in known and placed.arm in ("orig", "s2ap"):
            runs[placed.cell].append(placed)
    if not runs:
        raise InputError("--free: all runs are of settings that the paper has; leave it out to show them")
    cells = sorted(runs, key=lambda c: (c.data, c.network, c.method, c.training or "", _sparsity(c), c.name))
    cells = [replace(cell, printed=cell.data) for cell in cells]
    library.drop_damaged(["sharpness"])

    def holding(wanted: Sequence[Cell], holds: Callable[[PlacedRun], bool]) -> tuple[Cell, ...]:
        return tuple(cell for cell in wanted if any(map(holds, runs[cell])))

    entries = list(_tables(library, runs, lambda holds: holding(cells, holds)))
    groups: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.data, cell.network, cell.method, cell.training or ""].append(cell)
    names: dict[str, int] = defaultdict(int)
    for (data, network, method, training), group in groups.items():
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(filter(None, (data, network, method, training)))).strip("-.")
        names[slug] += 1
        slug = slug if names[slug] == 1 else f"{slug}-{names[slug]}"
        of = ", ".join(filter(None, (in_words(network), METHODS[method] or method, training)))
        for kind, (title, said) in KINDS.items():
            shown = holding(group, lambda placed: bool(course.epochs(placed.run.config, "prune")))
            if kind == "eigenvalue":
                shown = holding(shown, lambda placed: library.holds(placed.run, "curvature"))
            if shown:
                entries.append(
                    Entry(f"fig-{kind}-{slug}", f"{title}, {of} on {{data}}", kind, shown, name=f"{of}, {kind}", **said)
                )
    return entries


def _tables(
    library: Library,
    runs: dict[Cell, list[PlacedRun]],
    holding: Callable[[Callable[[PlacedRun], bool]], tuple[Cell, ...]],
) -> list[Entry]:
    """Make the entries of all settings together: accuracies, loss differences, masks by gamma."""
    entries = []
    for stage, what in (("finetune", "Finetuned networks"), ("prune", "Masks before finetuning")):
        cells = holding(lambda placed, stage=stage: library.holds(placed.run, f"evaluate-{stage}"))  # type: ignore[misc]
        if cells:
            title = "clean / robust accuracy (%), {data}"
            entries.append(
                Entry(f"table-{stage}", title, "accuracy", cells, stage=stage, metrics=ACCURACIES, name=what)
            )
    cells = holding(lambda placed: library.holds(placed.run, "sharpness"))
    measured = [loss_differences(p.run) for cell in cells for p in runs[cell] if library.holds(p.run, "sharpness")]
    rho = tuple(sorted({radius for by_radius in measured for radius in by_radius}))
    if rho:
        title, metrics = "loss difference by radius ρ, {data}", ("loss_difference",)
        entries.append(Entry("table-sharpness", title, "sharpness", cells, metrics=metrics, rho=rho, name="Sharpness"))
        title = f"at ρ = {rho[-1]:g}, {{data}}"
        figure = Entry("fig-loss-difference", title, "loss-difference", cells, metrics=metrics, rho=rho[-1:])
        entries.append(replace(figure, name="Loss difference", panels=("network", "method")))
    tried = tuple(c for c in runs if len(library.find_gammas(c, "s2ap", "evaluate-prune")) > 1)
    if tried:
        title, said = "robust accuracy of S2AP's masks, {data}", {"stage": "prune", "metrics": ACCURACIES[1:]}
        entries.append(Entry("fig-gamma", title, "gamma", tried, arms=("s2ap",), name="Masks by γ", **said))
    return entries


def _sparsity(cell: Cell) -> float:
    return cell.sparsity if cell.sparsity is not None else cell.flops_reduction or 0.0
