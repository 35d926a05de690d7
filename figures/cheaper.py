"""``python -m figures.cheaper``: cheaper ways to compute z, beside Orig. and S2AP; not a table of the paper.

For each setting that was searched with a cheaper perturbation: seconds of the search after its warm-up over
Orig.'s, the raw mask's robust accuracy, sharpness of the selected scores and the last epoch's Hamming distance,
as mean over seeds with its 95 % interval.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pandas as pd

from figures.intervals import shown, with_interval
from figures.matching import Library
from figures.settings import cell_of
from s2ap_core.config import Config, MinimizerSettings
from s2ap_core.files.atomic import write_file
from s2ap_core.runs import course
from s2ap_core.runs.identity import flat
from s2ap_diag.commands.options.shared import EXISTING
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.comparison.metrics import Seed
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import Run, collect

METRICS = {
    "time over Orig.": "{:.2f}",
    "robust accuracy of the mask (%)": "{:.1f}",
    "live λ_max": "{:.2f}",
    "λ_max": "{:.0f}",
    "ΔL at ρ = 0.01": "{:.3f}",
    "h": "{:.4f}",
}


def perturbation_of(minimizer: MinimizerSettings) -> str:
    """Say in words how z is made."""
    if minimizer.name == "none":
        return "Orig."
    parts = {"source": minimizer.source, "subset": f"{minimizer.subset:g}", "every": str(minimizer.every)}
    usual = {"source": "pass", "subset": "1", "every": "1"}
    return ", ".join(["S2AP", *(f"{name} = {value}" for name, value in parts.items() if value != usual[name])])


def searched_alike(config: Config) -> str:
    """Write the settings in which compared searches must agree: all but seed, minimizer and evaluation."""
    free = ("title", "seed", "data.options.fold", "minimizer", "finetune", "evaluation.stages", "evaluation.batch_size")
    settings = flat(config.model_dump(mode="json")).items()
    return json.dumps([*((key, value) for key, value in settings if not key.startswith(free)), config.minimizer.warmup])


def comparable(run: Run) -> bool:
    """Return whether a run has what is compared, and is Orig. or perturbs as S2AP does by default."""
    minimizer = run.config.minimizer
    by_default = (minimizer.carry, minimizer.eta_z, minimizer.update, minimizer.direction) == (
        False, math.inf, "method", "gradient",
    ) and not isinstance(minimizer.gamma, str)  # fmt: skip
    measured = "evaluate-prune" in run.results and "0.01" in (run.sharpness or {}).get("loss_difference", {})
    return measured and (minimizer.name == "none" or (minimizer.name == "s2ap" and by_default))


def readings(run: Run, orig: Run) -> dict[str, float]:
    """Read the metrics of one run, with Orig. of its seed for the time."""
    sharpness = run.sharpness or {}
    return {
        "time over Orig.": _seconds(run) / _seconds(orig),
        "robust accuracy of the mask (%)": 100 * run.results["evaluate-prune"]["robust_accuracy"],
        "live λ_max": sharpness.get("lambda_max_live", math.nan),  # measured by an earlier version
        "λ_max": sharpness["lambda_max"],
        "ΔL at ρ = 0.01": sharpness["loss_difference"]["0.01"]["mean"],
        "h": float(run.stability.iloc[-1]),
    }


def _seconds(run: Run) -> float:
    """Compute the median seconds of the search's epochs after the warm-up."""
    rows = run.timing[(run.timing["stage"] == "prune") & (run.timing["epoch"] > run.config.minimizer.warmup)]
    return float(rows["seconds"].median())


def table(runs: list[Run]) -> pd.DataFrame:
    """Build one row for each perturbation, means with intervals over the seeds that all of them have."""
    by_setting: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if comparable(run):
            by_setting[searched_alike(run.config)].append(run)
    rows = []
    for alike in by_setting.values():
        gammas = {r.config.minimizer.gamma for r in alike if "," in perturbation_of(r.config.minimizer)}
        for gamma in sorted(gammas):
            rows += _rows([r for r in alike if course.gamma(r.config) in (None, gamma)], gamma)
    return pd.DataFrame(rows)


def _rows(runs: list[Run], gamma: float) -> list[dict[str, Any]]:
    arms: dict[str, dict[Seed, Run]] = defaultdict(dict)
    for run in runs:
        # Of runs that differ in their finetuning alone any will do: the search is the same.
        arms[perturbation_of(run.config.minimizer)].setdefault(seed_of(run), run)
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in arms.values())))
    if "Orig." not in arms or not seeds:
        return []
    rows = []
    for arm, by_seed in arms.items():
        values = pd.DataFrame([readings(by_seed[seed], arms["Orig."][seed]) for seed in seeds])
        cell = cell_of(by_seed[seeds[0]].config)
        row = {"network": cell.network, "method": cell.method, "sparsity": cell.sparsity, "perturbation": arm}
        row |= {"gamma": None if arm == "Orig." else gamma, "seeds": len(seeds)}
        for metric in METRICS:
            row |= with_interval(metric, values[metric].tolist())
        rows.append(row)
    return rows


def markdown(means: pd.DataFrame) -> str:
    """Render as a Markdown table, the interval behind the mean."""
    lines = ["| perturbation | seeds | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 2) + "|"]
    for _, row in means.iterrows():
        cells = [shown(row, metric, shape) for metric, shape in METRICS.items()]
        lines.append(f"| {row['perturbation']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--runs", type=EXISTING, required=True, help="Folder that holds the runs.")
@click.option("--out", type=EXISTING, required=True, help="Folder for cheaper.csv and cheaper.md.")
def command(runs: Path, out: Path) -> None:
    """Compare cheaper perturbations with Orig. and S2AP."""
    attack = Library.open(runs).attack
    means = table([run for run in collect(runs)[0] if run.config.evaluation.attack == attack])
    write_file(out / "cheaper.csv", to_csv(means))
    write_file(out / "cheaper.md", markdown(means))
    click.echo(markdown(means))


if __name__ == "__main__":
    command()
