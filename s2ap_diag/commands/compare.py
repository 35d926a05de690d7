"""``s2ap-diag compare``: do two arms differ, by how much, and how many seeds would tell?"""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from s2ap_core.errors import InputError, did_you_mean, printable
from s2ap_core.runs import course
from s2ap_core.runs.identity import flat
from s2ap_diag.comparison.arms import SettingComparison, adjusted_p, compare_arms, tests_of
from s2ap_diag.comparison.metrics import PRINCIPAL, MetricComparison, spanned
from s2ap_diag.comparison.statistics import LEVEL
from s2ap_diag.output import forest
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import AT_LEAST, NOT_CONVERGED, Number, Table, make_table, marked, show
from s2ap_diag.reading.files import told_shortly, which_is_which
from s2ap_diag.reading.results import Run, collect

log = logging.getLogger(__name__)


def run_command(runs: tuple[Path, ...], arms: tuple[str, ...], where: tuple[str, ...], output: Output) -> None:
    """Compare two arms, show the differences, and draw them."""
    names, (first, second) = choose(runs, arms, where)
    compared = compare_arms(first, second)
    if not any(one.metrics for one in compared):
        raise InputError(
            f"{names[0]} and {names[1]}: nothing was measured in both; evaluate or measure the same of both"
        )
    p_values = adjusted_p(compared)
    records = [record(one, names, p_values) for one in compared]
    first_told, second_told = told_shortly(names)
    told = (first_told, second_told)
    output.emit(records, table_of(compared, told, p_values), rows=rows_of(records), above=which_is_which(names, told))
    if output.plot is not None:
        forest.draw(compared, told, output.plot)
    if output.quiet or output.json == "-":
        return
    say(compared, told, p_values)


def say(
    compared: Sequence[SettingComparison], names: tuple[str, str], p_values: Mapping[tuple[str, str], float]
) -> None:
    """Put into words what the seeds allow to say, what could not be compared, and the settings that differ."""
    for one in compared:
        click.echo(printable(f"{one.setting}:"))
        for name, metric in one.metrics.items():
            p = p_values.get((one.setting, name))
            if name in PRINCIPAL or (p is not None and p < 1 - LEVEL):
                click.echo(printable(f"  {metric.verdict(names, p, tests_of(p_values, name))}"))
        for note in (*measured_on(one), *one.notes):
            click.echo(printable(f"  {note}"))
        said = [f"{key} {a} | {b}" for key, (a, b) in one.config_differences.items()]
        click.echo(printable(f"  settings that differ: {'; '.join(said) or 'none'}"))


def measured_on(compared: SettingComparison) -> list[str]:
    """Say what sharpness was measured on, a line for the metrics that share it."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, metric in compared.metrics.items():
        if metric.measured_on:
            names[metric.measured_on].append(name)
    return [f"{', '.join(those)}: on {what}" for what, those in names.items()]


def choose(
    paths: Sequence[Path], arms: Sequence[str], where: Sequence[str]
) -> tuple[tuple[str, str], tuple[list[Run], list[Run]]]:
    """Find the runs of the two arms and name them.

    Raises:
        InputError: if there are not two arms, or one of them has no finished run.
    """
    if len(arms) not in (0, 2) or (not arms and len(paths) != 2):
        raise InputError(
            "give two runs or folders of runs, or --arm twice: compare A B, or compare RUNS --arm orig --arm s2ap"
        )
    if arms:
        opened = [run for path in paths for run in finished(path)]
        chosen = [[run for run in opened if "prune" in run.results and course.arm(run.config) == arm] for arm in arms]
        names = arms
    else:
        chosen = [finished(path) for path in paths]
        names = [_short(path, paths) for path in paths]
    chosen = [[run for run in runs if matches(run, where)] for runs in chosen]
    for name, runs in zip(names, chosen, strict=True):
        if not runs:
            remedy = f"see `s2ap-diag report` for what {paths[0]} holds"
            held = sorted({course.arm(run.config) for run in opened}) if arms else []
            raise InputError(f"{name}: no finished run of it; {did_you_mean(name, held, remedy)}")
    return (names[0], names[1]), (chosen[0], chosen[1])


def finished(path: Path) -> list[Run]:
    """Open the finished runs under a folder, and warn of the others."""
    runs, skipped = collect(path)
    for one in skipped:
        log.warning("skipped %s", " ".join(one.reason.split()))
    return runs


def matches(run: Run, where: Sequence[str]) -> bool:
    """Return whether a run has the settings asked for, without those of a perturbation that it does not make."""
    settings = {key: str(value) for key, value in flat(run.config.model_dump(mode="json")).items()}
    for wanted in where:
        key, equals, value = wanted.partition("=")
        if not equals or key not in settings:
            raise InputError(
                f"--where {wanted}: write KEY=VALUE with a setting of config.toml, as minimizer.gamma=0.01"
            )
        if key.startswith("minimizer.") and key != "minimizer.name" and run.config.minimizer.name == "none":
            continue
        if settings[key] != value:
            return False
    return True


def _short(path: Path, paths: Sequence[Path]) -> str:
    names = [os.path.basename(os.path.realpath(one)) for one in paths]
    return str(path) if len(set(names)) < len(names) else os.path.basename(os.path.realpath(path))


def record(
    compared: SettingComparison, names: tuple[str, str], p_values: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """Make the entry of ``compare --json`` of one setting."""
    return {
        "arms": list(names),
        "setting": compared.setting,
        "seeds": [seed for seed, _ in compared.seeds],
        "folds": [fold for _, fold in compared.seeds if fold >= 0],
        "metrics": {
            name: _metric(metric, p_values.get((compared.setting, name)), tests_of(p_values, name))
            for name, metric in compared.metrics.items()
        },
        "notes": list(compared.notes),
        "config_differences": {key: list(values) for key, values in compared.config_differences.items()},
    }


def _metric(metric: MetricComparison, adjusted: float | None, tests: int) -> dict[str, Any]:
    difference = metric.difference
    low, high = difference.interval or (None, None)
    return {
        "first": metric.first,
        "second": metric.second,
        "unit": metric.unit,
        "condition": metric.condition,
        "measured_on": metric.measured_on,
        "converged": metric.converged,
        "difference": difference.mean,
        "low": low,
        "high": high,
        "p": difference.p,
        "adjusted_p": adjusted,
        "seeds": len(difference.by_unit),
        "seeds_needed": difference.seeds_needed(tests=tests),
        "seeds_needed_for_one_point": difference.seeds_needed(1.0, tests) if metric.unit == "points" else None,
        "mcnemar": {str(seed) if fold < 0 else f"{seed}/{fold}": p for (seed, fold), p in metric.mcnemar.items()},
    }


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lay the records out flat, a row for each metric of a setting."""
    return [
        {"first_arm": one["arms"][0], "second_arm": one["arms"][1], "setting": one["setting"], "metric": name}
        | {key: value for key, value in metric.items() if key != "mcnemar"}
        for one in records
        for name, metric in one["metrics"].items()
    ]


def table_of(
    compared: Sequence[SettingComparison], names: tuple[str, str], p_values: Mapping[tuple[str, str], float]
) -> Table:
    """Lay out metrics down; both arms, the difference, and the seeds that would resolve it, across."""
    several = len(compared) > 1
    rows = []
    for one in compared:
        for name, metric in one.metrics.items():
            difference, points = metric.difference, metric.unit == "points"
            tests = tests_of(p_values, name)
            rows.append(
                [
                    *([one.setting] if several else []),
                    " ".join(filter(None, (name, metric.condition))),
                    *(_marked(metric, mean) for mean in (metric.first, metric.second)),
                    spanned(difference, metric.unit),
                    p_values.get((one.setting, name)),
                    len(difference.by_unit),
                    difference.seeds_needed(tests=tests),
                    difference.seeds_needed(1.0, tests) if points else None,
                ]
            )
    columns = ["metric", *names, f"{names[1]} − {names[0]} [95 %]", "p", "seeds", "seeds needed", "for one point"]
    units = "accuracies in %, λ_max as a ratio"
    title = f"{units}; p by Holm over settings" if several else f"{compared[0].setting}: {units}; p of each by itself"
    return make_table(
        title,
        ["setting", *columns] if several else columns,
        rows,
        gives_way=["for one point", "seeds needed", "seeds"],
        notes=(NOT_CONVERGED, AT_LEAST),
    )


def _marked(metric: MetricComparison, mean: float) -> Number:
    return marked(show(mean), converged=metric.converged, at_least=metric.at_least)
