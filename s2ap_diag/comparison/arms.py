"""Two arms of finished runs side by side: the same settings and seeds paired, each metric with its interval."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2ap_core.errors import InputError
from s2ap_core.runs import course
from s2ap_core.runs.identity import differences
from s2ap_diag.comparison.metrics import METRICS, MetricComparison, Reader, Seed, Unlike
from s2ap_diag.comparison.statistics import holm, tested
from s2ap_diag.reading.results import Run

INCIDENTAL = (
    "seed", "title", "data.options.fold", "data.root", "pretrain.checkpoint", "evaluation.stages", "compute",
)  # fmt: skip
"""Settings that may differ between paired runs without being what is compared."""


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


def compare_arms(
    first: Sequence[Run], second: Sequence[Run], metrics: Mapping[str, Reader] = METRICS
) -> list[SettingComparison]:
    """Compare two arms in each setting that both have.

    Args:
        metrics: by name how each is read; without those that runs do not have.

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
    return [compare_setting(setting, arms[0][setting], arms[1][setting], metrics) for setting in common]


def compare_setting(
    setting: str, first: Mapping[Seed, Run], second: Mapping[Seed, Run], metrics: Mapping[str, Reader]
) -> SettingComparison:
    """Compare two arms of one setting, runs by seed; arguments as for :func:`compare_arms`.

    Raises:
        InputError: if they have no seed in common, or were evaluated on other images, or by another attack or radius.
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        raise InputError(f"{setting}: the two arms have no seed in common; run both with the same seeds")
    pairs = [(first[seed], second[seed]) for seed in seeds]
    by_metric, notes = {}, []
    for name, measure in metrics.items():
        try:
            compared = measure(name, dict(zip(seeds, pairs, strict=True)))
        except Unlike as reason:
            notes.append(f"{name}: not compared: {reason}")
            continue
        if compared is not None:
            by_metric[name] = compared
    return SettingComparison(setting, seeds, by_metric, tuple(notes), config_differences(pairs))


def adjusted_p(compared: Sequence[SettingComparison]) -> dict[tuple[str, str], float]:
    """Correct the p-values of each metric for the number of settings (Holm); by setting and metric."""
    adjusted: dict[tuple[str, str], float] = {}
    for name in dict.fromkeys(name for one in compared for name in one.metrics):
        having = [one for one in compared if name in one.metrics]
        p_values = holm([one.metrics[name].difference.p for one in having])
        adjusted |= {(one.setting, name): p for one, p in zip(having, p_values, strict=True) if p is not None}
    return adjusted


def tests_of(p_values: Mapping[tuple[str, str], float], metric: str) -> int:
    """Count the settings over which a metric's p-values are corrected, given those of :func:`adjusted_p`."""
    return tested(p for (_, name), p in p_values.items() if name == metric)


def setting_of(run: Run) -> str:
    """Name data, network, method and what is left of the weights or FLOPs."""
    config = run.config
    reduction = course.flops_reduction(config)
    budget = f"keep {config.method.keep:g}" if reduction is None else f"{reduction:g}× fewer FLOPs"
    words = [config.data.name, course.network(config), config.method.name, budget]
    return ", ".join(words if config.objective.name == "trades" else [*words, config.objective.name])


def seed_of(run: Run) -> Seed:
    """Give seed and fold.

    Raises:
        InputError: if the fold is not a number.
    """
    fold = run.config.data.options.get("fold", -1)
    if not isinstance(fold, int):
        raise InputError(f"{run.path}: data.options.fold = {fold!r} is no number; folds are told apart by numbers")
    return run.config.seed, fold


def _by_setting(runs: Sequence[Run]) -> dict[str, dict[Seed, Run]]:
    grouped: dict[str, dict[Seed, Run]] = defaultdict(dict)
    for run in runs:
        others = grouped[setting_of(run)]
        if seed_of(run) in others:
            other = others[seed_of(run)]
            said = [f"--where {key}={ours}" for key, (_, ours) in config_differences([(other, run)]).items()]
            twice = f"one arm has {setting_of(run)}, seed {run.config.seed} twice"
            raise InputError(
                f"{other.path} and {run.path}: {twice}; leave one out" + ", as with ".join(["", *said[:1]])
            )
        others[seed_of(run)] = run
    return dict(grouped)


def _listed(settings: Mapping[str, Any]) -> str:
    return " and ".join(itertools.islice(settings, 3)) + (" and others" if len(settings) > 3 else "")


def config_differences(pairs: Sequence[tuple[Run, Run]]) -> dict[str, tuple[str, str]]:
    """Name the settings in which the runs of a pair differ, with the values of both arms."""
    by_key: dict[str, tuple[set[str], set[str]]] = {}
    for first, second in pairs:
        changes = differences(first.config.model_dump(mode="json"), second.config.model_dump(mode="json"))
        for key, values in changes.items():
            if not key.startswith(INCIDENTAL):
                for seen, value in zip(by_key.setdefault(key, (set(), set())), values, strict=True):
                    seen.add(str(value))
    return {key: (", ".join(sorted(a)), ", ".join(sorted(b))) for key, (a, b) in by_key.items()}
