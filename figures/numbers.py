"""The numbers of a table's rows: measured over seeds, and printed in the paper."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from figures import reference
from figures.afterwards import corruption_accuracy, loss_differences
from figures.catalogue import Cell, Entry
from figures.matching import Library
from s2ap_core.training.evaluation import Evaluation, wilson
from s2ap_diag.output import plots
from s2ap_diag.reading.results import Run

Key = tuple[Any, ...]
"""Data set, network, method, sparsity, FLOPs reduction and rho, None where they do not apply."""


@dataclass(frozen=True)
class Reading:
    """A number of one arm, by seed.

    Attributes:
        intervals: by seed the 95 % Wilson interval over images of an accuracy; of other numbers there is none.
    """

    by_seed: Mapping[int, float]
    intervals: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1), NaN for fewer than two."""
        values = list(self.by_seed.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the only seed's accuracy; NaN where several seeds have a spread, or it is no accuracy."""
        only = list(self.intervals.values())
        return only[0] if len(only) == 1 else (math.nan, math.nan)

    @property
    def error(self) -> tuple[float, float]:
        """Lengths of an error bar below and above the mean: :attr:`std`, or to the ends of :attr:`interval`, or NaN."""
        if not math.isnan(self.std):
            return self.std, self.std
        below, above = plots.reaches([self.mean], [self.interval])[:, 0]
        return below, above


@dataclass(frozen=True)
class Line:
    """What a row of a table compares.

    Attributes:
        readings: by arm and metric; what has no runs is missing.
        runs: by arm, those that were read.
        evaluations: by arm and seed, of the runs that are compared image by image.
        rho: radius of the loss difference.
    """

    cell: Cell
    readings: Mapping[str, Mapping[str, Reading]]
    runs: Mapping[str, Sequence[Run]]
    evaluations: Mapping[str, Mapping[int, Evaluation]] = field(default_factory=dict)
    rho: float | None = None


def gap(clean_orig: float, robust_orig: float, clean_s2ap: float, robust_s2ap: float) -> float:
    """Compute clean minus robust accuracy of Orig., minus that of S2AP (Sect. 4.2)."""
    return (clean_orig - robust_orig) - (clean_s2ap - robust_s2ap)


def measured_gap(line: Line, arms: Sequence[str]) -> float:
    """Compute the gap of the means, NaN where an arm has no runs."""
    try:
        orig, s2ap = (line.readings[arm] for arm in arms)
        return gap(
            *(reading[metric].mean for reading in (orig, s2ap) for metric in ("clean_accuracy", "robust_accuracy"))
        )
    except KeyError:
        return math.nan


def lines_of(entry: Entry, library: Library) -> Iterator[Line]:
    """Read the rows of a comparing table, in order."""
    make: Callable[[Entry, Library, Cell], Iterable[Line]] = {
        "accuracy": _accuracy,
        "corruptions": _corruptions,
        "sharpness": _sharpness,
    }[entry.kind]
    for cell in entry.cells:
        yield from make(entry, library, cell)


def accuracy(evaluations: Mapping[int, Evaluation], metric: str) -> Reading:
    """Compute a metric such as ``robust_accuracy`` in percent."""
    kind = metric.removesuffix("_accuracy")
    correct = {seed: getattr(evaluation, kind) for seed, evaluation in evaluations.items()}
    ends = {seed: wilson(int(images.sum()), len(images)) for seed, images in correct.items()}
    return Reading(
        {seed: 100 * float(images.mean()) for seed, images in correct.items()},
        {seed: (100 * low, 100 * high) for seed, (low, high) in ends.items()},
    )


def evaluations_of(library: Library, cell: Cell, arm: str, stage: str) -> dict[int, tuple[Run, Evaluation]]:
    """Read the run and the evaluation of each seed."""
    by_seed = {}
    for seed, run in library.find(cell, arm, f"evaluate-{stage}").items():
        evaluation = run.evaluation(stage)
        if evaluation is not None:
            by_seed[seed] = (run, evaluation)
    return by_seed


def _accuracy(entry: Entry, library: Library, cell: Cell) -> Iterator[Line]:
    by_arm = {arm: evaluations_of(library, cell, arm, str(entry.stage)) for arm in entry.arms}
    evaluations = {arm: {s: evaluation for s, (_, evaluation) in by_seed.items()} for arm, by_seed in by_arm.items()}
    readings = {
        arm: {metric: accuracy(by_seed, metric) for metric in entry.metrics}
        for arm, by_seed in evaluations.items()
        if by_seed
    }
    runs = {arm: [run for run, _ in by_seed.values()] for arm, by_seed in by_arm.items()}
    yield Line(cell, readings, runs, evaluations)


def _corruptions(entry: Entry, library: Library, cell: Cell) -> Iterator[Line]:
    readings, runs = {}, {}
    for arm in entry.arms if cell.comparable else ():
        by_seed = library.find(cell, arm, "corruptions")
        accuracies = {seed: corruption_accuracy(run, entry.severity or 3) for seed, run in by_seed.items()}
        complete = {seed: 100 * value for seed, value in accuracies.items() if value is not None}
        runs[arm] = [by_seed[seed] for seed in complete]
        if complete:
            readings[arm] = {entry.metrics[-1]: Reading(complete)}
    yield Line(cell, readings, runs)


def _sharpness(entry: Entry, library: Library, cell: Cell) -> Iterator[Line]:
    by_arm = {arm: library.find(cell, arm, "sharpness") for arm in entry.arms}
    for rho in entry.rho:
        readings = {}
        for arm, runs in by_arm.items():
            values = loss_difference_at(runs, rho)
            if values.by_seed:
                readings[arm] = {entry.metrics[-1]: values}
        measured = {arm: [runs[s] for s in readings[arm][entry.metrics[-1]].by_seed] for arm, runs in by_arm.items()
                    if arm in readings}  # fmt: skip
        yield Line(cell, readings, measured, rho=rho)


def loss_difference_at(runs: Mapping[int, Run], rho: float) -> Reading:
    """Read the loss difference at a radius, of the seeds that it was measured for."""
    by_seed = {}
    for seed, run in runs.items():
        for radius, value in loss_differences(run).items():
            if math.isclose(radius, rho, rel_tol=1e-6):
                by_seed[seed] = value
    return Reading(by_seed)


def printed(entry: Entry, cell: Cell, metric: str, arm: str | None, rho: float | None = None) -> tuple[float, float]:
    """Read the paper's number and its std, NaN where the paper printed none or its text has lost it."""
    if entry.name:
        return math.nan, math.nan
    numbers = _printed(entry.id)
    candidates = (numbers.get((*key, metric, arm)) for key in _keys(entry, cell, rho))
    return next((number for number in candidates if number is not None), (math.nan, math.nan))


def disagrees(entry: Entry, cell: Cell, metric: str) -> bool:
    """Return whether the paper's number contradicts its others."""
    return not entry.name and any((*key, metric) in _contradictions(entry.id) for key in _keys(entry, cell, None))


def _keys(entry: Entry, cell: Cell, rho: float | None) -> Iterator[Key]:
    """List how a reference table may name a setting: dense networks and times lack the method, times the sparsity."""
    data = "cifar10c" if entry.kind == "corruptions" else cell.printed
    method = cell.method.removesuffix("-channels")
    yield data, cell.network, method, cell.sparsity, cell.flops_reduction, rho
    yield data, cell.network, None, None, cell.flops_reduction, rho


@cache
def _printed(table: str) -> dict[tuple[Any, ...], tuple[float, float]]:
    rows = reference.load(table)
    arms = _blank(rows["minimizer"])
    keys = zip(_settings(rows), rows["metric"], arms, strict=True)
    return {
        (*setting, metric, arm): (value, std)
        for (setting, metric, arm), value, std in zip(keys, rows["value"], rows["std"], strict=True)
    }


@cache
def _contradictions(table: str) -> set[tuple[Any, ...]]:
    rows = reference.disagreements(table)
    return {(*setting, metric) for setting, metric in zip(_settings(rows), rows["metric"], strict=True)}


def _settings(rows: pd.DataFrame) -> list[Key]:
    names = ("dataset", "network", "method", "sparsity", "flops_reduction", "rho")
    return list(zip(*(_blank(rows[name]) for name in names), strict=True))


def _blank(column: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value for value in column]
