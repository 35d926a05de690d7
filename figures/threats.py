"""``python -m figures.threats --runs RUNS --out OUT``: the norm of the search against the norm of the attack.

A mask is searched against an adversary of one norm; does it hold in another? A heat map of robust accuracy, a row for
each norm of training and a column for each norm of the attack, the interval over folds in each cell. Not in the paper.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import click
import numpy as np
import pandas as pd
import seaborn as sns

from figures.__main__ import Only
from figures.settings import differing_settings
from s2ap_core.config import AttackNorm
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.comparison.metrics import Seed, unit_means
from s2ap_diag.comparison.statistics import PairedDifference, paired_difference
from s2ap_diag.output import plots
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import Run, collect

NORMS: tuple[AttackNorm, ...] = ("Linf", "L2", "L1")

VARIED = ("objective.norm", "objective.eps", "objective.step", "evaluation.norm", "evaluation.eps")
"""Settings in which the runs of a heat map may differ, besides seed and fold."""

Threat = tuple[AttackNorm, Fraction]
"""A norm, and the radius in it."""


def trained_in(run: Run) -> Threat:
    """Return the threat that a run is trained against."""
    return run.config.objective.norm, run.config.objective.eps


def attacked_in(run: Run) -> Threat:
    """Return the threat that a run's networks are evaluated under."""
    asked, (norm, eps) = run.config.evaluation, trained_in(run)
    return asked.norm or norm, eps if asked.eps is None else asked.eps


def cells(runs: Sequence[Run], stage: str) -> dict[tuple[Threat, Threat], dict[Seed, float]]:
    """Read robust accuracies in percent: by the threats of training and attack, and by seed and fold.

    Raises:
        InputError: if no run was trained and attacked and has this stage, two are of the same place, or they differ in
            what may not vary.
    """
    used = [run for run in runs if "robust_accuracy" in run.results.get(f"evaluate-{stage}", {})]
    used = [run for run in used if run.config.objective.name != "clean"]
    if not used:
        raise InputError(f"no run was evaluated under attack after {stage}; sweep the grid threats, or give --stage")
    others = differing_settings([run.config for run in used], VARIED)
    if others:
        raise InputError(
            f"{used[0].path.parent}: its runs differ in {', '.join(others)} too; give a folder of one search"
        )
    found: dict[tuple[Threat, Threat], dict[Seed, float]] = {}
    paths: dict[tuple[Threat, Threat, Seed], Path] = {}
    for run in used:
        place = (trained_in(run), attacked_in(run), seed_of(run))
        if place in paths:
            raise InputError(f"{run.path}: of the same norms and seed as {paths[place]}; remove one of them")
        paths[place] = run.path
        found.setdefault(place[:2], {})[place[2]] = 100 * run.results[f"evaluate-{stage}"]["robust_accuracy"]
    return found


def means_of(
    found: Mapping[tuple[Threat, Threat], Mapping[Seed, float]],
) -> dict[tuple[Threat, Threat], PairedDifference]:
    """Average each cell over its folds."""
    return {pair: paired_difference(unit_means(by_seed)) for pair, by_seed in found.items()}


def frame_of(means: Mapping[tuple[Threat, Threat], PairedDifference]) -> pd.DataFrame:
    """Make a row for each cell: norms and radii, the mean in percent, its 95 % t-interval over folds, their number."""
    rows = []
    for trained, attacked in sorted(means, key=lambda pair: [(NORMS.index(norm), eps) for norm, eps in pair]):
        mean = means[trained, attacked]
        low, high = mean.interval or (np.nan, np.nan)
        rows.append((*trained, *attacked, mean.mean, low, high, len(mean.by_unit)))
    columns = [
        "trained_norm",
        "trained_eps",
        "norm",
        "eps",
        "robust_accuracy",
        "interval_low",
        "interval_high",
        "folds",
    ]
    return pd.DataFrame(rows, columns=columns)


def draw(means: Mapping[tuple[Threat, Threat], PairedDifference], files: Sequence[Path]) -> None:
    """Draw the heat map; a cell that no run is of stays empty."""
    rows, columns = (
        sorted({pair[side] for pair in means}, key=lambda threat: (NORMS.index(threat[0]), threat[1]))
        for side in (0, 1)
    )
    values = [[means[r, c].mean if (r, c) in means else np.nan for c in columns] for r in rows]
    texts = [[_said(means[r, c]) if (r, c) in means else "" for c in columns] for r in rows]
    table = pd.DataFrame(values, [_named(r) for r in rows], [_named(c) for c in columns])
    with plots.canvas(files, plots.COLUMN, 0.9 + 0.55 * len(rows)) as figure:
        panel = figure.add_subplot()
        sns.heatmap(
            table, ax=panel, annot=np.array(texts), fmt="", cmap="cividis", annot_kws={"fontsize": 7},
            cbar_kws={"label": "robust accuracy (%)"},
        )  # fmt: skip
        panel.set_xlabel("attacked in")
        panel.set_ylabel("searched and trained in")


def _named(threat: Threat) -> str:
    return f"{threat[0]}, {threat[1]}"


def _said(mean: PairedDifference) -> str:
    shown = f"{mean.mean:.1f}"
    return shown if mean.interval is None else f"{shown}\n[{mean.interval[0]:.0f}, {mean.interval[1]:.0f}]"


@click.command(cls=Only)
@click.option(
    "--runs", type=click.Path(path_type=Path), required=True, help="Folder that holds the runs, at any depth."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for threats.png, .pdf and .csv.")
@click.option(
    "--stage", type=click.Choice(["pretrain", "prune", "finetune"]), default="finetune", show_default=True,
    help="Whose networks: the dense ones, the raw masks, the finetuned ones.",
)  # fmt: skip
def command(runs: Path, out: Path, stage: str) -> None:
    """Draw robust accuracy by the norm of the mask's search and the norm of the attack."""
    finished, skipped = collect(runs)
    for left_out in skipped:
        click.echo(f"left out: {left_out.path}: {left_out.reason}", err=True)
    means = means_of(cells(finished, stage))
    frame = frame_of(means)
    write_file(out / "threats.csv", to_csv(frame))
    draw(means, [out / "threats.png", out / "threats.pdf"])
    click.echo(frame.to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    command()
