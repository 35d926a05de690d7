"""``python -m figures.baselines``: masks without a search beside Orig. and S2AP; not a table of the paper.

For each network and budget with such masks: clean and robust accuracy of the raw mask and of the finetuned network, the
mean over folds with its 95 % t-interval. Searches are shown on the folds that the baselines have.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pandas as pd

from figures.intervals import shown, with_interval
from figures.matching import PlacedRun, place_run
from figures.settings import Threat, Training
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.methods import METHODS, build_method
from s2ap_core.runs import course
from s2ap_diag.commands.options.shared import EXISTING
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.comparison.metrics import Seed, unit_means
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import collect

COLUMNS = {
    (stage, kind): f"{of}, {kind} %"
    for stage, of in (("prune", "mask"), ("finetune", "finetuned"))
    for kind in ("clean", "robust")
}
"""By stage and kind of accuracy: the column that shows it."""

ARMS = ("orig", "s2ap", "s2ap-plain")
"""That stand beside masks without a search; the last is finetuned as these are."""

Row = tuple[str, str, float | None]
"""Method, arm and gamma."""


def searches(placed: PlacedRun) -> bool:
    """Return whether a run's mask comes from a search."""
    return course.search_epochs(placed.run.config) > 0


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share.

    Attributes:
        epochs: that the dense network was trained for; None of a method that searches in untrained weights.
    """

    what: str
    training: Training
    epochs: int | None
    threat: Threat

    def __str__(self) -> str:
        trained = "" if self.epochs is None else f"pretrained for {self.epochs} epochs "
        return f"{self.what}; {trained}on {self.training}; evaluated under {self.threat}"


def alike(placed: PlacedRun) -> Setting:
    """Name the setting of a run: data, network, budget, the dense network, attack."""
    cell, config = placed.cell, placed.run.config
    network = f"{cell.network} of width {config.network.width}" if config.network.width else cell.network
    budget = (
        f"keep {config.method.keep:g}" if cell.flops_reduction is None else f"{cell.flops_reduction:g}x fewer FLOPs"
    )
    epochs = config.pretrain.epochs if build_method(config.method).pretrained else None
    return Setting(f"{cell.data}, {network}, {budget}", placed.training, epochs, placed.threat)


def by_setting(placed: Iterable[PlacedRun]) -> dict[Setting, dict[Row, dict[Seed, PlacedRun]]]:
    """Sort runs by what :func:`alike` names, by row, and by seed and fold.

    A method that searches in untrained weights stands in every setting that differs in the dense network alone.

    Raises:
        InputError: if two runs claim the same place.
    """
    settings: dict[Setting, dict[Row, dict[Seed, PlacedRun]]] = defaultdict(lambda: defaultdict(dict))
    for one in placed:
        others = settings[alike(one)][(one.cell.method, one.arm if searches(one) else "none", one.gamma)]
        other = others.setdefault(seed_of(one.run), one)
        if other is not one:
            raise InputError(f"{other.run.path} and {one.run.path}: claim the same row and seed; leave one out")
    for setting, rows in settings.items():
        if setting.epochs is not None:
            rows.update(settings.get(replace(setting, epochs=None), {}))
    return settings


def table(placed: Iterable[PlacedRun]) -> pd.DataFrame:
    """Build a row for each method, arm and gamma of the settings that have a mask without a search.

    Raises:
        InputError: if two runs claim the same place.
    """
    used = [one for one in placed if one.arm in ARMS and one.cell.method in METHODS]
    rows = []
    for setting, by_row in by_setting(used).items():
        folds = {fold for row, runs in by_row.items() if row[1] == "none" for fold in runs}
        for row in sorted(by_row, key=_order):
            runs = {fold: one for fold, one in by_row[row].items() if fold in folds}
            if runs:
                rows.append({"setting": str(setting)} | _record(row, runs))
    return pd.DataFrame(rows)


def _order(row: Row) -> tuple[int, str, float]:
    method, arm, gamma = row
    return list(METHODS).index(method), arm, gamma or 0.0


def _record(row: Row, runs: Mapping[Seed, PlacedRun]) -> dict[str, Any]:
    """Average the accuracies of a row over its folds, in percent."""
    method, arm, gamma = row
    units = len(unit_means(dict.fromkeys(runs, 0.0)))
    record: dict[str, Any] = {"method": method, "arm": arm, "gamma": gamma, "folds": units}
    for (stage, kind), column in COLUMNS.items():
        found = [one.run.results.get(f"evaluate-{stage}", {}).get(f"{kind}_accuracy") for one in runs.values()]
        if None in found:
            continue
        percent = {seed: 100 * value for seed, value in zip(runs, found, strict=True)}
        record |= with_interval(column, unit_means(percent))
    return record


def markdown(means: pd.DataFrame) -> str:
    """Render a Markdown table for each setting, the interval behind the mean."""
    lines: list[str] = []
    for setting, rows in means.groupby("setting", sort=False):
        lines += [f"{setting}.", "", "| method | search | folds | " + " | ".join(COLUMNS.values()) + " |"]
        lines.append("|---" * (len(COLUMNS) + 3) + "|")
        for row in rows.to_dict("records"):
            gamma = "" if pd.isna(row["gamma"]) else f", gamma {row['gamma']:g}"
            cells = [shown(row, column) for column in COLUMNS.values()]
            lines.append(f"| {row['method']} | {row['arm']}{gamma} | {row['folds']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


@click.command()
@click.option("--runs", type=EXISTING, required=True, help="Folder that holds the runs.")
@click.option("--out", type=EXISTING, required=True, help="Folder for baselines.csv and baselines.md.")
def command(runs: Path, out: Path) -> None:
    """Show masks without a search beside Orig. and S2AP."""
    means = table(one for run in collect(runs)[0] if (one := place_run(run)) is not None)
    if means.empty:
        raise click.UsageError(f"{runs}: no mask without a search; sweep the grid `gallery`, or name another folder")
    write_file(out / "baselines.csv", to_csv(means))
    write_file(out / "baselines.md", markdown(means))
    click.echo(markdown(means))


if __name__ == "__main__":
    command()
