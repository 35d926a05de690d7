"""``python -m figures.radius``: gamma searched or found; not a table of the paper.

For each setting searched with several radii: the lowest robust validation loss of the search, which is what a mask is
selected by, as mean and standard deviation over folds, and how far ``flips`` and ``rise`` are from the best of the
numbers, in standard deviations of that.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from figures.cheaper import searched_alike
from figures.settings import cell_of
from s2ap_core.config import MinimizerSettings
from s2ap_core.files.atomic import write_file
from s2ap_diag.commands.options.shared import EXISTING
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import Run, collect


def radius_of(minimizer: MinimizerSettings) -> str:
    """Say how the radius of each layer's ball is found."""
    match minimizer.gamma:
        case "flips":
            return f"flips = {minimizer.flips:g}"
        case "rise":
            return f"rise = {minimizer.rise:g}"
        case gamma:
            return f"gamma = {gamma:g}"


def plain(run: Run) -> bool:
    """Return whether a run's search differs from the paper's in nothing but the radius."""
    minimizer = run.config.minimizer
    usual = MinimizerSettings(name="s2ap")
    free = usual.model_dump(include={"gamma", "flips", "rise", "warmup"})
    return minimizer.model_copy(update=free) == usual


def table(runs: list[Run]) -> pd.DataFrame:
    """Build one row for each setting and radius, over the folds that all its radii have.

    Columns: setting, radius, folds, loss (mean), sd, and excess: the mean's distance from that of the best number, in
    the best's standard deviations; NaN of a single fold.
    """
    by_setting: dict[str, dict[str, dict[Any, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if plain(run):
            by_setting[searched_alike(run.config)][radius_of(run.config.minimizer)][seed_of(run)] = run
    rows: list[dict[str, Any]] = []
    for by_radius in by_setting.values():
        folds = set.intersection(*(set(by_fold) for by_fold in by_radius.values()))
        numbers = [radius for radius in by_radius if radius.startswith("gamma")]
        if len(numbers) < 2 or not folds:
            continue
        losses = {
            radius: np.array([min(by_fold[fold].curve("val_loss").values()) for fold in sorted(folds)])
            for radius, by_fold in by_radius.items()
        }
        best = losses[min(numbers, key=lambda radius: losses[radius].mean())]
        sd = best.std(ddof=1) if len(best) > 1 else np.nan
        (run, *_) = next(iter(by_radius.values())).values()
        config, cell = run.config, cell_of(run.config)
        name = f"{cell.network}, {cell.method}, keep {config.method.keep:g}"
        for radius in sorted(losses, key=_order):
            own = losses[radius]
            spread = own.std(ddof=1) if len(own) > 1 else np.nan
            rows.append({"setting": name, "radius": radius, "folds": len(folds), "loss": own.mean(), "sd": spread,
                         "excess": (own.mean() - best.mean()) / sd})  # fmt: skip
    return pd.DataFrame(rows)


def _order(radius: str) -> tuple[bool, str, float]:
    kind, _, value = radius.split(" ")
    return kind != "gamma", kind, float(value)


def _cell(row: pd.Series) -> str:
    return f"{row['loss']:.3f} ± {row['sd']:.3f} ({row['excess']:+.1f})"


def markdown(rows: pd.DataFrame) -> str:
    """Render settings as columns, radii as rows: the mean loss, behind it the excess over the best number's."""
    cells = {(row["setting"], row["radius"]): _cell(row) for _, row in rows.iterrows()}
    settings, radii = list(dict.fromkeys(rows["setting"])), list(dict.fromkeys(rows["radius"]))
    lines = ["| radius | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    lines += [f"| {radius} | " + " | ".join(cells.get((s, radius), "-") for s in settings) + " |" for radius in radii]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--runs", type=EXISTING, required=True, help="Folder that holds the runs.")
@click.option("--out", type=EXISTING, required=True, help="Folder for radius.csv and radius.md.")
def command(runs: Path, out: Path) -> None:
    """Hold flips and rise against the best of several gammas."""
    rows = table(collect(runs)[0])
    if rows.empty:
        raise click.UsageError(f"{runs}: no setting was searched with two gammas; sweep the grid `radius`")
    write_file(out / "radius.csv", to_csv(rows))
    write_file(out / "radius.md", markdown(rows))
    click.echo(markdown(rows))


if __name__ == "__main__":
    command()
