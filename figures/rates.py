"""``python -m figures.rates --runs RUNS --out OUT``: which keep rates a transformer's layers should have.

The paper leaves it open. Each way to keep rates is held against uniform ones, at the same budget, with the same search
and finetuning: robust accuracy over paired folds, corrected for all tests of a column, with the seeds that would decide
it; and S2AP against the plain search at the same rates. Pictures show the rates by block and unit over the search.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd

from figures.__main__ import Only
from figures.baselines import Row, by_setting
from figures.claims import NAMES
from figures.intervals import shown, with_interval
from figures.matching import PlacedRun, place_run
from figures.rate_maps import draw_rates, rates_over_epochs
from figures.rendered_table import RenderedTable, Text
from figures.report import write_table
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_diag.commands.options.shared import EXISTING
from s2ap_diag.comparison.metrics import METRICS, MetricComparison, Seed, many, spanned, unit_means
from s2ap_diag.comparison.statistics import LEVEL, holm, tested
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import collect

UNIFORM = "hydra"

RATES = {
    UNIFORM: "uniform",
    "hydra-erk": "ERK",
    "hydra-spectral": "spectra",
    "harp": "HARP, layers",
    "harp-units": "HARP, units",
    "harp-heads": "HARP, heads",
}
"""The methods shown, and in words whose rates they keep."""

PLAIN = {"s2ap-plain": "orig", "s2ap": "orig-awp"}
"""Arms with S2AP, and those that differ from them in the search alone."""

SHOWN = {"mask_robust": "mask", "finetuned_robust": "finetuned"}
"""Metrics of the table, in words."""

STAGES = {"prune": "mask", "finetune": "finetuned"}
"""The stages that they are of."""


@dataclass(frozen=True)
class Comparison:
    """A metric of the runs of one row against those of another, of the same setting and folds.

    Attributes:
        question: what the rows differ in, ``rates`` or ``S2AP``.
        adjusted_p: after Holm's correction over all comparisons of this question and metric; None below three folds.
        tests: how many these are.
    """

    setting: str
    row: Row
    keep: float
    question: str
    compared: MetricComparison
    adjusted_p: float | None = None
    tests: int = 1

    @property
    def verdict(self) -> str:
        """Whether the row is ahead of the other beyond chance, behind, or neither."""
        if self.adjusted_p is None or self.adjusted_p >= 1 - LEVEL:
            return "undecided"
        return "ahead" if self.compared.better == 1 else "behind"


def compare_rates(settings: Mapping[str, Mapping[Row, Mapping[Seed, PlacedRun]]]) -> list[Comparison]:
    """Hold each row against uniform rates, and each search with S2AP against the one without.

    Raises:
        InputError: if the runs of a pair were evaluated on other images or by another attack.
    """
    found = [
        Comparison(setting, row, next(iter(runs.values())).run.config.method.keep, question, compared)
        for setting, by_row in settings.items()
        for row, runs in by_row.items()
        for question, other in _others(row, by_row)
        for compared in _compared(by_row[other], runs)
    ]
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, one in enumerate(found):
        families[one.question, one.compared.name].append(index)
    for indices in families.values():
        p_values = [found[index].compared.difference.p for index in indices]
        for index, p in zip(indices, holm(p_values), strict=True):
            found[index] = replace(found[index], adjusted_p=p, tests=tested(p_values))
    return found


def _others(row: Row, rows: Mapping[Row, Any]) -> Iterator[tuple[str, Row]]:
    """Name the rows of a setting that a row is held against, each with the question that this answers."""
    method, arm, gamma = row
    if method != UNIFORM and (UNIFORM, arm, gamma) in rows:
        yield "rates", (UNIFORM, arm, gamma)
    plain = [other for other in rows if other[:2] == (method, PLAIN.get(arm))]
    if len(plain) == 1:
        yield "S2AP", plain[0]


def _compared(first: Mapping[Seed, PlacedRun], second: Mapping[Seed, PlacedRun]) -> Iterator[MetricComparison]:
    pairs = {seed: (first[seed].run, second[seed].run) for seed in sorted(first.keys() & second.keys())}
    for metric in SHOWN if pairs else ():
        compared = METRICS[metric](metric, pairs)
        if compared is not None:
            yield compared


def rates_table(settings: Mapping[str, Mapping[Row, Mapping[Seed, PlacedRun]]]) -> RenderedTable:
    """Lay out a line for each setting and row: means, and the difference from uniform rates and from no S2AP."""
    compared = compare_rates(settings)
    found = {(one.setting, one.row, one.question, one.compared.name): one for one in compared}
    rows = []
    for setting, by_row in settings.items():
        for row, runs in sorted(by_row.items(), key=lambda item: _order(item[0])):
            keep = next(iter(runs.values())).run.config.method.keep
            units = len(unit_means(dict.fromkeys(runs, 0.0)))
            cells = [Text(f"{keep:g}"), Text(RATES[row[0]]), Text(NAMES[row[1]]), Text(str(units))]
            cells += [_mean(stage, runs) for stage in STAGES]
            for question in ("rates", "S2AP"):
                cells += [_cell(found.get((setting, row, question, metric))) for metric in SHOWN]
            one = found.get((setting, row, "rates", "finetuned_robust"))
            rows.append([*cells, *_decision(one)])
    return RenderedTable(
        id="rates",
        heading="Rates: keep rates of a transformer's layers, robust accuracy",
        groups=[
            ("", ["Keep", "Rates", "Search", "Folds"]),
            ("robust, % [95 %]", list(STAGES.values())),
            ("against uniform rates [95 %]", list(SHOWN.values())),
            ("S2AP against none [95 %]", list(SHOWN.values())),
            ("finetuned, against uniform", ["Verdict", "Seeds needed"]),
        ],
        rows=rows,
        caption=[
            f"{_besides(settings)}.",
            "Differences over paired folds in points, with their 95 % interval; bold, ahead or behind where beyond "
            "chance at 5 % after Holm's correction over the column. Seeds needed: to find a difference as large as "
            "that seen in 80 of 100 trials, at the level that the correction asks of the column's first comparison.",
        ],
        records=pd.DataFrame([_record(one) for one in compared]),
    )


def _besides(settings: Mapping[str, Mapping[Row, Mapping[Seed, PlacedRun]]]) -> str:
    """Name what all settings share, which is all but the budget.

    Raises:
        InputError: if they do not.
    """
    firsts = {setting: _first(rows) for setting, rows in settings.items()}
    shared = {setting.replace(f", keep {one.run.config.method.keep:g};", ";") for setting, one in firsts.items()}
    if len(shared) > 1:
        two = " and ".join(str(one.run.path) for one in list(firsts.values())[:2])
        raise InputError(f"{two}: are of different networks or threats; give a folder of one: {', or '.join(shared)}")
    return shared.pop()


def _order(row: Row) -> tuple[str, int, float]:
    method, arm, gamma = row
    return arm, list(RATES).index(method), gamma or 0.0


def _mean(stage: str, runs: Mapping[Seed, PlacedRun]) -> Text:
    found = {seed: one.run.results.get(f"evaluate-{stage}", {}).get("robust_accuracy") for seed, one in runs.items()}
    percent = {seed: 100 * value for seed, value in found.items() if value is not None}
    return Text(shown(with_interval(stage, unit_means(percent)), stage) if len(percent) == len(runs) else "")


def _cell(one: Comparison | None) -> Text:
    if one is None:
        return Text("")
    return Text(spanned(one.compared.difference, one.compared.unit), bold=one.verdict != "undecided")


def _decision(one: Comparison | None) -> list[Text]:
    if one is None:
        return [Text(""), Text("")]
    needed = "" if one.verdict != "undecided" else many(one.compared.difference.seeds_needed(tests=one.tests))
    return [Text(one.verdict, bold=one.verdict != "undecided"), Text(needed)]


def _record(one: Comparison) -> dict[str, Any]:
    method, arm, gamma = one.row
    low, high = one.compared.difference.interval or (None, None)
    return {
        "setting": one.setting,
        "keep": one.keep,
        "method": method,
        "arm": arm,
        "gamma": gamma,
        "question": one.question,
        "metric": one.compared.name,
        "other": one.compared.first,
        "own": one.compared.second,
        "difference": one.compared.difference.mean,
        "interval_low": low,
        "interval_high": high,
        "p": one.compared.difference.p,
        "adjusted_p": one.adjusted_p,
        "verdict": one.verdict,
        "folds": len(one.compared.difference.by_unit),
        "seeds_needed": one.compared.difference.seeds_needed(tests=one.tests),
    }


def settings_in(placed: Sequence[PlacedRun]) -> dict[str, dict[Row, dict[Seed, PlacedRun]]]:
    """Sort the runs of transformers in which several ways to keep rates meet, see :func:`by_setting`.

    Raises:
        InputError: if there is no such setting, or two runs claim the same place.
    """
    used = [one for one in placed if one.cell.method in RATES and one.cell.network == "vit"]
    settings = {
        str(setting): rows
        for setting, rows in by_setting(used).items()
        if UNIFORM in {row[0] for row in rows} and len({row[0] for row in rows}) > 1
    }
    if not settings:
        raise InputError("no setting of a ViT has runs of uniform and of other keep rates; sweep the grid rates")
    return dict(sorted(settings.items(), key=lambda item: -_first(item[1]).run.config.method.keep))


def _first(rows: Mapping[Row, Mapping[Seed, PlacedRun]]) -> PlacedRun:
    return next(iter(next(iter(rows.values())).values()))


@click.command(cls=Only)
@click.option("--runs", type=EXISTING, required=True, help="Folder that holds the runs, at any depth.")
@click.option("--out", type=EXISTING, required=True, help="Folder for rates.md, .tex, .csv and the pictures.")
def command(runs: Path, out: Path) -> None:
    """Hold keep rates of a transformer's layers against uniform ones, and draw those that were learned."""
    finished, skipped = collect(runs)
    for left_out in skipped:
        click.echo(f"left out: {left_out.path}: {left_out.reason}", err=True)
    settings = settings_in([one for run in finished if (one := place_run(run)) is not None])
    click.echo(write_table(rates_table(settings), out).markdown)
    rates = rates_over_epochs(one for rows in settings.values() for runs in rows.values() for one in runs.values())
    write_file(out / "rates-by-unit.csv", to_csv(rates))
    for arm, of_arm in rates.groupby("arm"):
        draw_rates(of_arm, [out / f"rates-{arm}.{ending}" for ending in ("png", "pdf")])


if __name__ == "__main__":
    command()
