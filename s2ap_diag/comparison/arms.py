"""Two arms of finished runs side by side: the same settings and seeds paired, each metric with its interval."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from s2ap_core.errors import InputError
from s2ap_core.runs import course
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.comparison.statistics import LEVEL, Kind, PairedDifference, compare, holm, paired_difference
from s2ap_diag.reading.results import Run

Unit = Literal["points", "log10", ""]

Seed = tuple[int, int]
"""Seed and fold of a run, fold -1 where the data have none."""

STAGES = {"pretrain": "dense", "prune": "mask", "finetune": "finetuned"}
"""What a stage hands on, in words."""

INCIDENTAL = ("seed", "title", "data.options.fold", "data.root", "pretrain.checkpoint", "evaluation.stages", "compute")
"""Settings that may differ between paired runs without being what is compared."""

MEASURED_UNDER = ("batch_norm", "adversary", "batches", "batch_size", "n_scores")
"""What two readings of sharpness must have in common."""


@dataclass(frozen=True)
class MetricComparison:
    """A metric of both arms.

    Attributes:
        name: such as ``finetuned_robust``, ``lambda_max_live``, ``loss_difference``, ``h``.
        unit: of the difference: percentage ``points``, ``log10`` for lambda_max, whose ratio is what compares, or that
            of the metric.
        first, second: the arms' means over the paired seeds, percent for accuracies.
        difference: second minus first.
        mcnemar: by seed, for accuracies.
        condition: what it was measured under, in words; nothing where the name says all.
    """

    name: str
    unit: Unit
    lower_is_better: bool
    first: float
    second: float
    difference: PairedDifference
    mcnemar: Mapping[Seed, float]
    condition: str = ""

    @property
    def better(self) -> int:
        """Which arm has the better mean, 0 or 1, be it by chance."""
        return int((self.difference.mean > 0) != self.lower_is_better)

    def verdict(self, arms: tuple[str, str], adjusted_p: float | None) -> str:
        """Say what the seeds allow to say.

        Args:
            arms: their names.
            adjusted_p: the p-value corrected for the other settings of the table, None with fewer than three seeds.
        """
        seen = spanned(self.difference, self.unit)
        units = len(self.difference.by_unit)
        if adjusted_p is None:
            differ = any(p < 1 - LEVEL for p in self.mcnemar.values())
            networks = "; the two networks of a seed differ (McNemar)" if differ else ""
            few = "one seed says" if units == 1 else "two seeds say"
            return f"{self.name}: {seen}; {few} nothing of the arms{networks}"
        if adjusted_p < 1 - LEVEL:
            return f"{self.name}: {arms[self.better]} is better beyond chance, {seen}"
        needed = [(self.difference.seeds_needed(), "such a difference")]
        if self.unit == "points":
            needed.append((self.difference.seeds_needed(1.0), "one point"))
        said = [f"{many(seeds)} would resolve {what}" for seeds, what in needed]
        return f"{self.name}: undecided with {units} seeds, {seen}; {', '.join(said)}"


def many(seeds: int | None) -> str:
    """Say a number of seeds, or that no number does."""
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


@dataclass(frozen=True)
class SettingComparison:
    """Two arms in one setting: data, network, method and budget.

    Attributes:
        seeds: those that both arms have.
        metrics: by name.
        notes: what could not be compared, and why.
        config_differences: by setting the values of the two arms.
    """

    setting: str
    seeds: tuple[Seed, ...]
    metrics: Mapping[str, MetricComparison]
    notes: tuple[str, ...]
    config_differences: Mapping[str, tuple[str, str]]


def compare_arms(first: Sequence[Run], second: Sequence[Run]) -> list[SettingComparison]:
    """Compare two arms in each setting that both have.

    Raises:
        InputError: if they have no setting and seed in common, one arm has a seed of a setting twice, or two runs
            were evaluated on other images, or by another attack or radius.
    """
    arms = [_by_setting(runs) for runs in (first, second)]
    common = [setting for setting in arms[0] if setting in arms[1]]
    if not common:
        raise InputError(
            f"the two arms share no setting: {_listed(arms[0])} against {_listed(arms[1])}; compare runs of the same "
            "data, network, method and budget"
        )
    return [_compare_setting(setting, arms[0][setting], arms[1][setting]) for setting in common]


def adjusted_p(compared: Sequence[SettingComparison]) -> dict[tuple[str, str], float]:
    """Correct the p-values of each metric for the number of settings (Holm); by setting and metric."""
    found: dict[tuple[str, str], float] = {}
    for name in _MEASURES:
        p_values = {
            (one.setting, name): p
            for one in compared
            if name in one.metrics and (p := one.metrics[name].difference.p) is not None
        }
        found.update(zip(p_values, holm(list(p_values.values())), strict=True))
    return found


def setting_of(run: Run) -> str:
    """Name data, network, method and what is left of the weights or FLOPs."""
    config = run.config
    reduction = course.flops_reduction(config)
    budget = f"keep {config.method.keep:g}" if reduction is None else f"{reduction:g}× fewer FLOPs"
    return f"{config.data.name}, {config.network.name}, {config.method.name}, {budget}"


def seed_of(run: Run) -> Seed:
    """Give seed and fold."""
    return run.config.seed, int(run.config.data.options.get("fold", -1))


def _by_setting(runs: Sequence[Run]) -> dict[str, dict[Seed, Run]]:
    found: dict[str, dict[Seed, Run]] = defaultdict(dict)
    for run in runs:
        others = found[setting_of(run)]
        if seed_of(run) in others:
            other = others[seed_of(run)]
            said = [f"--where {key}={ours}" for key, (_, ours) in config_differences([(other, run)]).items()]
            twice = f"one arm has {setting_of(run)}, seed {run.config.seed} twice"
            raise InputError(
                f"{other.path} and {run.path}: {twice}; leave one out" + ", as with ".join(["", *said[:1]])
            )
        others[seed_of(run)] = run
    return dict(found)


def _listed(settings: Mapping[str, Any]) -> str:
    return " and ".join(itertools.islice(settings, 3)) + (" and others" if len(settings) > 3 else "")


def _compare_setting(setting: str, first: Mapping[Seed, Run], second: Mapping[Seed, Run]) -> SettingComparison:
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        raise InputError(f"{setting}: the two arms have no seed in common; run both with the same seeds")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    metrics, notes = {}, []
    for name, measure in _MEASURES.items():
        try:
            found = measure(name, dict(zip(seeds, pairs, strict=True)))
        except _Unlike as reason:
            notes.append(f"{name}: not compared: {reason}")
            continue
        if found is not None:
            metrics[name] = found
    return SettingComparison(setting, seeds, metrics, tuple(notes), config_differences(pairs))


def config_differences(pairs: Sequence[tuple[Run, Run]]) -> dict[str, tuple[str, str]]:
    """Name the settings in which the runs of a pair differ, with the values of both arms."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for pair in pairs:
        flat = [dict(flatten(run.config.model_dump(mode="json"))) for run in pair]
        for key in dict.fromkeys([*flat[0], *flat[1]]):
            values = [str(one.get(key)) for one in flat]
            if values[0] != values[1] and not key.startswith(INCIDENTAL):
                sets = found.setdefault(key, (set(), set()))
                for seen, value in zip(sets, values, strict=True):
                    seen.add(value)
    return {key: (", ".join(sorted(a)), ", ".join(sorted(b))) for key, (a, b) in found.items()}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name nested settings by dotted keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class _Unlike(Exception):
    """Two runs were measured in different ways."""


Pairs = Mapping[Seed, tuple[Run, Run]]


def _accuracy(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare an accuracy image by image; None where an arm has no evaluation of the stage."""
    product, word = name.split("_")
    kind: Kind = "clean" if word == "clean" else "robust"
    stage = next(stage for stage, said in STAGES.items() if said == product)
    arms: list[dict[Seed, Evaluation]] = [{}, {}]
    for seed, pair in pairs.items():
        evaluations = [_evaluation(run, stage) for run in pair]
        if any(evaluation is None for evaluation in evaluations):
            return None
        for arm, evaluation in zip(arms, evaluations, strict=True):
            assert evaluation is not None
            if kind == "robust" and evaluation.about["attack"] == "none":
                return None
            arm[seed] = evaluation
    found = compare(arms[0], arms[1], kind)
    a, b = (100 * _mean([getattr(evaluation, kind).mean() for evaluation in arm.values()]) for arm in arms)
    return MetricComparison(name, "points", False, a, b, found.difference.scaled(100), found.mcnemar)


def _evaluation(run: Run, stage: str) -> Evaluation | None:
    return run.evaluation(stage) if f"evaluate-{stage}" in run.results else None


def _sharpness(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare lambda_max by its logarithm, whose difference is a ratio's; by itself where one is not positive."""
    records = _records(pairs)
    if records is None or any(record.get(name) is None for pair in records.values() for record in pair):
        return None
    values = {seed: (float(a[name]), float(b[name])) for seed, (a, b) in records.items()}
    positive = min(itertools.chain(*values.values())) > 0
    return _paired(name, values, "log10" if positive else "")


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
    return replace(_paired(name, values, ""), condition=f"at rho = {rho}")


def _h(name: str, pairs: Pairs) -> MetricComparison | None:
    """Compare the Hamming distance of the last mask to the first (Eq. 13)."""
    if any(run.config.prune.epochs == 0 or "prune" not in run.results for pair in pairs.values() for run in pair):
        return None
    return _paired(name, {seed: (_last_h(a), _last_h(b)) for seed, (a, b) in pairs.items()}, "")


def _last_h(run: Run) -> float:
    return float(run.stability.iloc[-1])


def _records(pairs: Pairs) -> dict[Seed, tuple[dict[str, Any], dict[str, Any]]] | None:
    """Read the sharpness of all runs; None where one was not measured.

    Raises:
        _Unlike: if two were measured in different ways.
    """
    records = {}
    for seed, (a, b) in pairs.items():
        if a.sharpness is None or b.sharpness is None:
            return None
        records[seed] = (a.sharpness, b.sharpness)
    for key in MEASURED_UNDER:
        _check_alike(key, [record.get(key) for pair in records.values() for record in pair])
    return records


def _check_alike(what: str, values: Sequence[Any]) -> None:
    different = list(dict.fromkeys(map(str, values)))
    if len(different) > 1:
        raise _Unlike(f"{what} is {' and '.join(different)}; measure both alike")


def _paired(name: str, values: Mapping[Seed, tuple[float, float]], unit: Unit) -> MetricComparison:
    of_difference: Callable[[float], float] = math.log10 if unit == "log10" else float
    differences = [of_difference(b) - of_difference(a) for a, b in values.values()]
    first, second = (_mean(column) for column in zip(*values.values(), strict=True))
    return MetricComparison(name, unit, True, first, second, paired_difference(differences), {})


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


_MEASURES: dict[str, Callable[[str, Pairs], MetricComparison | None]] = {
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
