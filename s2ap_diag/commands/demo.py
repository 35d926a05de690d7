"""``s2ap-diag demo``: the whole path on scikit-learn's digits, with and without S2AP, and what it did."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from s2ap_core.config import Config
from s2ap_core.data import Dataset
from s2ap_core.files.atomic import write_file
from s2ap_core.presets.read import read_config
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.execute import execute, prepare
from s2ap_diag.execution.progress import counting
from s2ap_diag.execution.signals import resumable
from s2ap_diag.output import plots
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import accuracies, make_table
from s2ap_diag.reading.results import open_run, save_sharpness
from s2ap_diag.report import write_report
from s2ap_diag.sharpness import Sharpness, SharpnessSettings, measure_sharpness

ARMS = {
    "orig": ("evaluation.n=64",),
    "s2ap": ("minimizer.name=s2ap", "finetune.awp=true", 'evaluation.stages=["prune", "finetune"]', "evaluation.n=64"),
}
QUICK = (
    "prune.epochs=3",
    "minimizer.warmup=1",
    "finetune.epochs=1",
    "evaluation.attack=pgd-50",
    "evaluation.n=400",
    "tracking.iterations=4",
)


def run_command(
    out: Path,
    quick: bool,
    seed: int,
    output: Output,
    device: str,
) -> None:
    """Prune with both arms, measure both, and write figure, report and table."""
    check_device(device)
    configs = configs_of(out, quick, seed)
    with resumable(f"s2ap-diag demo --out {out}"):
        data = prepare(configs["orig"])
        runs = {
            arm: execute(config, out / arm, device=device, quiet=output.quiet, resume=True, data=data, name=arm)
            for arm, config in configs.items()
        }
    settings = SharpnessSettings(rho=(0.01,), images=128, seed=seed)
    sharpness = measure(runs, data.to(device), settings, device, output.quiet)
    for arm, run in runs.items():
        save_sharpness(run.path, sharpness[arm])
    records = [row(arm, run, sharpness[arm]) for arm, run in runs.items()]
    picture = output.plot or out / "figure1.png"
    draw(runs, picture)
    if output.plot is None:
        draw(runs, out / "figure1.pdf")
    write_file(out / "demo.json", json.dumps(records, indent=2) + "\n")
    write_report(out, out / "report.html", "demo")
    output.emit(records, table_of(records))
    if not output.quiet and output.json != "-":
        click.echo(verdict(records))
        click.echo(f"Figure 1: {picture}")
        click.echo(f"Report: {out / 'report.html'}")


def configs_of(out: Path, quick: bool, seed: int) -> dict[str, Config]:
    """Compose the config of each arm; all start from the dense network of the first."""
    common = (*(QUICK if quick else ()), f"seed={seed}")
    orig = read_config("digits", (*ARMS["orig"], *common, *(("pretrain.epochs=4",) if quick else ())))
    dense = RunDirectory(out / "orig", orig).checkpoint("pretrain")
    return {"orig": orig, "s2ap": read_config("digits", (*ARMS["s2ap"], *common, f"pretrain.checkpoint={dense}"))}


def measure(
    runs: dict[str, RunDirectory], data: Dataset, settings: SharpnessSettings, device: str, quiet: bool
) -> dict[str, Sharpness]:
    """Measure the sharpness of each arm's selected scores, on the same images."""
    with counting("sharpness", len(runs) * (1 + len(settings.rho)), quiet) as advance:
        return {
            arm: measure_sharpness(
                load_checkpoint(run.checkpoint("prune-best"), device),
                data,
                run.config.objective,
                settings,
                advance,
            )
            for arm, run in runs.items()
        }


def row(arm: str, run: RunDirectory, sharpness: Sharpness) -> dict[str, Any]:
    """Gather the results of one arm's run; accuracies in percent."""
    results = run.results()
    dense = accuracies(results, "pretrain")
    raw, finetuned = accuracies(results, "prune"), accuracies(results, "finetune")
    seconds = pd.read_csv(run.path / "timing.csv")["seconds"].sum()
    evaluated = results["evaluate-prune"]
    return {
        "arm": arm,
        "n": evaluated["n"],
        "attack": evaluated["attack"],
        "eps": evaluated["eps"],
        "keep": sharpness.keep,
        **dict(zip(("dense_clean", "dense_robust"), dense, strict=True)),
        **dict(zip(("mask_clean", "mask_robust"), raw, strict=True)),
        **dict(zip(("finetuned_clean", "finetuned_robust"), finetuned, strict=True)),
        "lambda_max": sharpness.curvature.lambda_max,
        "lambda_max_live": sharpness.curvature.lambda_max_live,
        "dead_channels": sharpness.curvature.dead_channels,
        "loss_difference": sharpness.loss_differences[0].mean,
        "h": open_run(run.path).stability.iloc[-1].item(),
        "selected_epoch": results["prune"]["selected_epoch"],
        "seconds": round(seconds, 1),
    }


def table_of(records: list[dict[str, Any]]) -> Any:
    """Make a row for each arm; the dense network, which both start from, stands in the first."""
    first = records[0]
    title = (
        f"HYDRA on digits, keep {first['keep']:.3g}; clean / robust accuracy in % under {first['attack']}, "
        f"eps {first['eps']}, {first['n']} test images"
    )
    columns = ["", "dense", "raw mask", "finetuned", "λ_max", "live λ_max", "dead", "ΔL ≥, ρ=0.01", "h", "seconds"]
    rows = [
        [
            record["arm"],
            *(_pair(record, kind) for kind in ("dense", "mask", "finetuned")),
            *(record[key] for key in ("lambda_max", "lambda_max_live", "dead_channels")),
            *(record[key] for key in ("loss_difference", "h", "seconds")),
        ]
        for record in records
    ]
    return make_table(title, columns, rows)


def _pair(record: dict[str, Any], kind: str) -> str | None:
    clean, robust = record[f"{kind}_clean"], record[f"{kind}_robust"]
    return None if clean is None else f"{clean:.1f} / {robust:.1f}"


def verdict(records: list[dict[str, Any]]) -> str:
    """Say where S2AP gained and where it lost, as measured, in one run of one seed."""
    orig, s2ap = records
    good = {"mask_robust": "raw mask's robust accuracy", "finetuned_robust": "finetuned robust accuracy"}
    low = {
        "lambda_max": "λ_max",
        "lambda_max_live": "live λ_max",
        "loss_difference": "loss difference",
        "h": "Hamming distance",
    }
    gains = [name for key, name in good.items() if s2ap[key] > orig[key]]
    gains += [name for key, name in low.items() if s2ap[key] < orig[key]]
    losses = [name for key, name in good.items() if s2ap[key] < orig[key]]
    losses += [name for key, name in low.items() if s2ap[key] > orig[key]]
    said = f"S2AP is better in: {', '.join(gains) or 'nothing'}; worse in: {', '.join(losses) or 'nothing'}."
    return f"{said} One seed: differences of a few points are within chance."


def draw(runs: dict[str, RunDirectory], file: Path) -> None:
    """Draw the three panels of the paper's Figure 1: accuracy, mask stability, sharpness over epochs."""
    orig, s2ap = (open_run(runs[arm].path) for arm in ARMS)
    accuracy, errors = pd.DataFrame(index=["raw mask", "finetuned"]), {}
    for arm, run in zip(ARMS, (orig, s2ap), strict=True):
        evaluated = [run.results[f"evaluate-{stage}"] for stage in ("prune", "finetune")]
        accuracy[arm] = [100 * result["robust_accuracy"] for result in evaluated]
        errors[arm] = plots.reaches(accuracy[arm], [100 * np.array(result["robust_interval"]) for result in evaluated])
    with plots.picture(file, 2.1 * plots.COLUMN, 2.3, panels=3) as (a, b, c):
        plots.bars(a, accuracy, ylabel="robust accuracy (%)", errors=errors)
        plots.difference_area(b, orig.stability - s2ap.stability, first="orig", second="s2ap")
        live, every = (
            {arm: run.tracked(metric) for arm, run in zip(ARMS, (orig, s2ap), strict=True)}
            for metric in ("lambda_max_live_batch", "lambda_max_batch")
        )
        warmup = s2ap.config.minimizer.warmup
        ylabel = r"live $\lambda_{max}$ (BatchNorm: batch)" + "\nthin: of all scores"
        plots.curves(c, live, thin=every, xlabel="epoch", ylabel=ylabel, warmup=warmup, log=True)
