"""The metrics by which two arms are compared: how each is read from paired runs, and what its difference says."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from s2ap_core.runs import course
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.comparison.statistics import (
    LEAST_SEEDS,
    LEVEL,
    Kind,
    PairedDifference,
    compare,
    correctness,
    paired_difference,
)
from s2ap_diag.reading.results import Run

Unit = Literal["points", "log10", ""]

Seed = tuple[int, int]
"""Seed and fold of a run, fold -1 where the data have none."""

Pairs = Mapping[Seed, tuple[Run, Run]]
"""A run of each arm, by seed."""

STAGES = {"pretrain": "dense", "prune": "mask", "finetune": "finetuned"}
"""What a stage hands on, in words."""

MEASURED_UNDER = ("batch_norm", "adversary", "batches", "batch_size", "n_scores")
"""What two readings of sharpness must have in common."""


@dataclass(frozen=True)
class MetricComparison:
    """A metric of both arms.

    Attributes:
        name: such as ``finetuned_robust``, ``lambda_max_live``, ``loss_difference``, ``h``.
        unit: of the difference: percentage ``points``, ``log10`` for lambda_max, which is compared by its ratio, or
            the metric's own.
        first, second: the arms' means over the paired seeds, percent for accuracies.
        difference: second minus first.
        mcnemar: by seed, for accuracies.
        condition: what it was measured at, in words; nothing where the name says all.
        measured_on: what sharpness was measured on, in words, since it depends on that; nothing for other metrics.
        converged: whether all readings have.
        at_least: the readings are lower bounds.
    """

    name: str
    unit: Unit
    lower_is_better: bool
    first: float
    second: float
    difference: PairedDifference
    mcnemar: Mapping[Seed, float]
    condition: str = ""
    measured_on: str = ""
    converged: bool = True
    at_least: bool = False

    @property
    def better(self) -> int:
        """Which arm has the better mean, 0 or 1, be it by chance."""
        return int((self.difference.mean > 0) != self.lower_is_better)

    def verdict(self, arms: tuple[str, str], adjusted_p: float | None, tests: int = 1) -> str:
        """Say what the seeds allow to say.

        Args:
            arms: their names.
            adjusted_p: the p-value corrected for the other settings of the table, None where there is none.
            tests: how many settings these are.
        """
        seen = spanned(self.difference, self.unit)
        units = len(self.difference.by_unit)
        if adjusted_p is None and units >= LEAST_SEEDS:
            return f"{self.name}: {seen}; all {units} seeds say the same, which leaves no spread to test it by"
        if adjusted_p is None:
            differ = any(p < 1 - LEVEL for p in self.mcnemar.values())
            networks = "; the two networks of a seed differ (McNemar)" if differ else ""
            few = "one seed says" if units == 1 else "two seeds say"
            return f"{self.name}: {seen}; {few} nothing of the arms{networks}"
        if adjusted_p < 1 - LEVEL:
            return f"{self.name}: {arms[self.better]} is better beyond chance, {seen}"
        needed = [(self.difference.seeds_needed(tests=tests), "such a difference")]
        if self.unit == "points":
            needed.append((self.difference.seeds_needed(1.0, tests), "one point"))
        said = [f"{many(seeds)} would resolve {what}" for seeds, what in needed]
        return f"{self.name}: undecided with {units} seeds, {seen}; {', '.join(said)}"


def many(seeds: int | None) -> str:
    """Say how many seeds resolve a difference, or that no number does."""
    return "no number of seeds" if seeds is None else f"{seeds} seeds"


def spanned(difference: PairedDifference, unit: Unit) -> str:
    """Write a difference with its 95 % interval, where it has one; of logarithms as a ratio."""

    def number(value: float) -> str:
        if unit == "log10":
            return f"{10**value:.3g}"
        return f"{value:+.2f}" if unit == "points" else f"{value:+.3g}"

    mean = ("×" if unit == "log10" else "") + number(difference.mean)
    if difference.interval is None:
        return mean
    low, high = difference.interval
    return f"{mean} [{number(low)}, {number(high)}]"


class Unlike(Exception):
    """Two runs were measured in different ways."""


Reader = Callable[[str, Pairs], MetricComparison | None]
"""Reads a metric, by its name, of paired runs; None where a run does not have it."""


def _accuracy(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare an accuracy, or the gap of two, image by image; None where a run has no evaluation of the stage."""
    product, _, word = name.partition("_")
    kinds: dict[str, Kind] = {"clean": "clean", "robust": "robust", "gap": "gap"}
    kind = kinds[word]
    stage = next(stage for stage, said in STAGES.items() if said == product)
    arms: list[dict[Seed, Evaluation]] = [{}, {}]
    for seed, pair in pairs.items():
        evaluations = [_evaluation(run, stage) for run in pair]
        if any(evaluation is None for evaluation in evaluations):
            return None
        for arm, evaluation in zip(arms, evaluations, strict=True):
            assert evaluation is not None
            if kind != "clean" and evaluation.about["attack"] == "none":
                return None
            arm[seed] = evaluation
    comparison = compare(arms[0], arms[1], kind)
    a, b = (100 * _mean([correctness(evaluation, kind).mean() for evaluation in arm.values()]) for arm in arms)
    return MetricComparison(name, "points", kind == "gap", a, b, comparison.difference.scaled(100), comparison.mcnemar)


def _evaluation(run: Run, stage: str) -> Evaluation | None:
    return run.evaluation(stage) if f"evaluate-{stage}" in run.results else None


def _sharpness(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare lambda_max by its logarithm, whose difference is a ratio's; by itself where one is not positive."""
    records = _records(pairs)
    if records is None or any(record.get(name) is None for pair in records.values() for record in pair):
        return None
    values = {seed: (float(a[name]), float(b[name])) for seed, (a, b) in records.items()}
    positive = min(itertools.chain(*values.values())) > 0
    flag = name.replace("lambda_max", "converged")
    converged = all(record.get(flag, True) for pair in records.values() for record in pair)
    compared = _paired(name, values, "log10" if positive else "")
    return replace(compared, measured_on=_measured_on(records), converged=converged)


def _loss_difference(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare the loss difference at the largest radius that all runs have."""
    records = _records(pairs)
    if records is None:
        return None
    measured = [record.get("loss_difference") or {} for pair in records.values() for record in pair]
    radii = set.intersection(*(set(by_rho) for by_rho in measured))
    if not radii:
        return None
    rho = max(radii, key=float)
    for option in ("ascent", "steps", "restarts", "norm", "scale"):
        _check_alike(f"{option} of the ascent", [by_rho[rho].get(option) for by_rho in measured])
    values = {
        seed: (a["loss_difference"][rho]["mean"], b["loss_difference"][rho]["mean"]) for seed, (a, b) in records.items()
    }
    restarts, steps, ascent = (measured[0][rho].get(option, "?") for option in ("restarts", "steps", "ascent"))
    measured_on = f"{_measured_on(records)}, {restarts} x {steps} steps of {ascent}"
    return replace(_paired(name, values, ""), condition=f"at rho = {rho}", measured_on=measured_on, at_least=True)


def _h(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare the Hamming distance of the last mask to the first (Eq. 13)."""
    if any(
        not course.epochs(run.config, "prune") or "prune" not in run.results for pair in pairs.values() for run in pair
    ):
        return None
    return _paired(name, {seed: (_last_h(a), _last_h(b)) for seed, (a, b) in pairs.items()}, "")


def _h_after_warmup(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare the mean h to the first mask over the epochs after the warm-up (Figure 1b)."""
    values = {}
    for seed, (a, b) in pairs.items():
        epochs = course.perturbed(b.config) or course.perturbed(a.config)
        _check_alike("prune.epochs", [run.config.prune.epochs for run in (a, b)])
        if not epochs or any("prune" not in run.results for run in (a, b)):
            return None
        values[seed] = (float(a.stability.loc[list(epochs)].mean()), float(b.stability.loc[list(epochs)].mean()))
    return _paired(name, values, "")


def _tracked(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare the geometric mean of a tracked lambda_max over the epochs after the warm-up (Figures 1c, 8 to 17)."""
    values = {}
    for seed, (a, b) in pairs.items():
        epochs = course.perturbed(b.config) or course.perturbed(a.config)
        _check_alike("prune.epochs", [run.config.prune.epochs for run in (a, b)])
        for field in ("every", "recipe", "images", "iterations"):
            _check_alike(f"tracking.{field}", [getattr(run.config.tracking, field) for run in (a, b)])
        logs = [_mean_log(run, name.removeprefix("tracked_"), epochs) for run in (a, b)]
        if any(math.isnan(log) for log in logs):
            return None
        values[seed] = (10 ** logs[0], 10 ** logs[1])
    return _paired(name, values, "log10")


def _mean_log(run: Run, metric: str, epochs: range) -> float:
    """Average log10 of a metric over epochs; NaN where it was not tracked or is not positive."""
    tracked = run.tracked(metric)
    chosen = tracked[tracked.index.isin(list(epochs))]
    return float(np.log10(chosen).mean()) if len(chosen) and (chosen > 0).all() else math.nan


def _last_h(run: Run) -> float:
    return float(run.stability.iloc[-1])


def _records(pairs: Pairs) -> dict[Seed, tuple[dict[str, Any], dict[str, Any]]] | None:
    """Read the sharpness of all runs; None where one was not measured.

    Raises:
        Unlike: if two were measured in different ways.
    """
    records = {}
    for seed, (a, b) in pairs.items():
        if a.sharpness is None or b.sharpness is None:
            return None
        records[seed] = (a.sharpness, b.sharpness)
    for key in MEASURED_UNDER:
        _check_alike(key, [record.get(key) for pair in records.values() for record in pair])
    return records


def _measured_on(records: Mapping[Seed, tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Say what readings that are alike were made on."""
    first, _ = next(iter(records.values()))
    batches, size, mode = (first.get(key, "?") for key in ("batches", "batch_size", "batch_norm"))
    return f"{batches} x {size} images, BatchNorm {mode}"


def _check_alike(what: str, values: Sequence[Any]) -> None:
    different = list(dict.fromkeys(map(str, values)))
    if len(different) > 1:
        raise Unlike(f"{what} is {' and '.join(different)}; measure both alike")


def _paired(name: str, values: Mapping[Seed, tuple[float, float]], unit: Unit) -> MetricComparison:
    """Compare a metric of which less is better, over seeds, or over folds where there are several.

    Of lambda_max the means are geometric, so that their ratio is the difference.
    """
    scaled = {seed: (math.log10(a), math.log10(b)) if unit == "log10" else (a, b) for seed, (a, b) in values.items()}
    first, second = (_mean(column) for column in zip(*scaled.values(), strict=True))
    if unit == "log10":
        first, second = 10**first, 10**second
    difference = paired_difference(unit_means({seed: b - a for seed, (a, b) in scaled.items()}))
    return MetricComparison(name, unit, True, first, second, difference, {})


def unit_means(values: Mapping[Seed, float]) -> list[float]:
    """Average a value over the seeds of each fold, which share its images; with one fold or none each is by itself."""
    if len({fold for _, fold in values}) == 1:
        return list(values.values())
    by_unit: dict[Seed, list[float]] = defaultdict(list)
    for (seed, fold), value in values.items():
        by_unit[(seed, fold) if fold < 0 else (0, fold)].append(value)
    return [_mean(alike) for alike in by_unit.values()]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


METRICS: dict[str, Reader] = {
    "dense_clean": _accuracy,
    "dense_robust": _accuracy,
    "mask_clean": _accuracy,
    "mask_robust": _accuracy,
    "finetuned_clean": _accuracy,
    "finetuned_robust": _accuracy,
    "lambda_max_live": _sharpness,
    "lambda_max": _sharpness,
    "loss_difference": _loss_difference,
    "h": _h,
}
"""The metrics in the order in which they are shown; for each how it is read."""

PRINCIPAL = ("mask_robust", "finetuned_robust", "lambda_max_live", "loss_difference")
"""The metrics whose comparison is stated as a sentence whatever it says; of others, what is beyond chance."""

TRACKED: dict[str, Reader] = {
    "finetuned_gap": _accuracy,
    "h_after_warmup": _h_after_warmup,
    **{
        f"tracked_{spectrum}_{mode}": _tracked
        for spectrum in ("lambda_max_live", "lambda_max")
        for mode in ("running", "batch", "none")
    },
}
"""What the paper's claims are of besides: means over the search after its warm-up, and the gap of Sect. 4.2."""
