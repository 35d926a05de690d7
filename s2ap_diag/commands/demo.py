"""``s2ap-diag demo``: the whole path on scikit-learn's digits, with and without S2AP, and what it did."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd

from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.presets.read import read_config
from s2ap_core.runs import course
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import differences
from s2ap_diag.commands.compare import record, rows_of, say, table_of
from s2ap_diag.comparison.arms import adjusted_p, compare_arms
from s2ap_diag.execution.device import check_device
from s2ap_diag.output import plots
from s2ap_diag.output.destinations import Output
from s2ap_diag.reading.results import Run, open_run
from s2ap_diag.report import write_report
from s2ap_diag.sweep.grid import Measurement, PlannedRun
from s2ap_diag.sweep.plan import plan
from s2ap_diag.sweep.progress import run_schedule
from s2ap_diag.sweep.resources import absolute, resources
from s2ap_diag.sweep.schedule import Schedule
from s2ap_diag.sweep.tasks import Workplace

ARMS = {
    "orig": (),
    "s2ap": (
        "minimizer.name=s2ap",
        "minimizer.gamma=0.01",
        "finetune.awp=true",
        'evaluation.stages=["prune", "finetune"]',
    ),
}
"""What the arms differ in: gamma is one at which z flips some 0.2 % of the mask; the dense network is shared."""

SETTINGS = (
    "pretrain.epochs=6",
    "prune.epochs=6",
    "minimizer.warmup=2",
    "finetune.epochs=2",
    "evaluation.attack=pgd-50",
    "evaluation.n=400",
    "evaluation.batch_size=400",
    "tracking.recipe=warm",
    "tracking.images=32",
)
QUICK = (
    *SETTINGS,
    "pretrain.epochs=4",
    "prune.epochs=3",
    "minimizer.warmup=1",
    "finetune.epochs=1",
    "tracking.iterations=4",
)
FOLDS = 3
"""Each is tested on images that no other is; three are the fewest that have an interval."""


def run_command(out: Path, quick: bool, seed: int, output: Output, device: str) -> None:
    """Prune with both arms on each fold, measure all, and write figure, report and table."""
    check_device(device)
    planned = planned_runs(quick, seed)
    check_made_alike(out, planned)
    tasks = plan(planned)
    executor, workers, threads = resources(tasks, None, None, 0, device)
    schedule = Schedule(tasks, Workplace(absolute(str(out)), device, threads), workers)
    run_schedule(schedule, executor, f"s2ap-diag demo --out {out}", quiet=output.quiet)
    for failed in schedule.failed:
        raise InputError(f"{out}: {failed.name} failed: {failed.error}; its log is {out}/{failed.log}")
    names = ("orig", "s2ap")
    runs = {arm: [open_run(out / f"{arm}-{fold}") for fold in range(1 if quick else FOLDS)] for arm in names}
    compared = compare_arms(runs["orig"], runs["s2ap"])
    p_values = adjusted_p(compared)
    picture = output.plot or out / "figure1.png"
    for file in (picture,) if output.plot else (picture, picture.with_suffix(".pdf")):
        draw(runs, file)
    records = [record(one, names, p_values) for one in compared]
    write_file(out / "demo.json", json.dumps(records, indent=2) + "\n")
    write_report(out, out / "report.html", "demo")
    output.emit(records, table_of(compared, names, p_values), rows=rows_of(records))
    if not output.quiet and output.json != "-":
        say(compared, names, p_values)
        click.echo(dense(runs["orig"]))
        click.echo(flips(runs["s2ap"]))
        click.echo(f"Figure 1: {picture}")
        click.echo(f"Report: {out / 'report.html'}")


def check_made_alike(out: Path, planned: Sequence[PlannedRun]) -> None:
    """Refuse to go on with runs of other settings, as of ``--quick`` or another seed.

    Raises:
        InputError: naming the run and a setting that differs.
    """
    for run in planned:
        if not (out / run.name / "config.toml").is_file():
            continue
        begun = RunDirectory.open(out / run.name).config
        # Without the title, which follows the settings.
        changes = differences(*(c.model_dump(mode="json", exclude={"title"}) for c in (begun, run.config)))
        for key, (old, new) in changes.items():
            remedy = "give another --out, or the same options as then"
            raise InputError(f"{out / run.name}: began with {key} = {old}, now {new}; {remedy}")


def planned_runs(quick: bool, seed: int) -> list[PlannedRun]:
    """Compose the runs: on each fold, with a seed of its own, both arms."""
    settings = QUICK if quick else SETTINGS
    measured = Measurement(images=64, rho=[0.01])
    return [
        PlannedRun(
            f"{arm}-{fold}",
            read_config("digits", (*settings, f"seed={seed + fold}", f"data.options.fold={fold}", *ARMS[arm])),
            measured,
        )
        for fold in range(1 if quick else FOLDS)
        for arm in ARMS
    ]


def dense(runs: Sequence[Run]) -> str:
    """Say how accurate the dense networks are that both arms start from, and under what all accuracies are."""
    evaluated = [run.results["evaluate-pretrain"] for run in runs]
    clean, robust = (100 * np.mean([one[f"{kind}_accuracy"] for one in evaluated]) for kind in ("clean", "robust"))
    under = f"{evaluated[0]['attack']}, eps {evaluated[0]['eps']}, {evaluated[0]['n']} images of each fold"
    return f"The dense networks: {clean:.1f} % clean, {robust:.1f} % robust, as all accuracies under {under}."


def flips(runs: Sequence[Run]) -> str:
    """Say how many mask bits z flips in an iteration after the warm-up: it acts through nothing else."""
    shares = []
    for run in runs:
        flipped = run.tracked("perturbation_flips")
        entries = (run.sharpness or {})["n_scores"]
        shares += [count / entries for epoch, count in flipped.items() if epoch in course.perturbed(run.config)]
    low, high = (100 * bound for bound in (min(shares), max(shares)))
    return f"z flips {low:.2g} to {high:.2g} % of the mask's entries in the epochs after the warm-up."


def draw(runs: Mapping[str, Sequence[Run]], file: Path) -> None:
    """Draw the three panels of the paper's Figure 1: accuracy, mask stability, sharpness over epochs; means of folds.

    Error bars and bands are a standard deviation over the folds.
    """
    accuracy, errors = pd.DataFrame(index=["raw mask", "finetuned"]), {}
    for arm, ours in runs.items():
        robust = pd.DataFrame([_robust_accuracies(run) for run in ours])
        accuracy[arm] = robust.mean().to_numpy()
        errors[arm] = np.tile(robust.std().to_numpy(), (2, 1))
    with plots.picture(file, 2.1 * plots.COLUMN, 2.3, panels=3) as (a, b, c):
        plots.bars(a, accuracy, ylabel="robust accuracy (%)", errors=errors)
        orig, s2ap = (pd.DataFrame([run.stability for run in runs[arm]]).mean() for arm in ("orig", "s2ap"))
        plots.difference_area(b, orig - s2ap, first="orig", second="s2ap")
        live, every = (
            {arm: _geometric_mean(ours, metric) for arm, ours in runs.items()}
            for metric in ("lambda_max_live_batch", "lambda_max_batch")
        )
        warmup = course.warmup(runs["s2ap"][0].config)
        ylabel = r"live $\lambda_{max}$ (BatchNorm: batch)" + "\nthin: of all scores"
        plots.curves(c, live, thin=every, xlabel="epoch", ylabel=ylabel, warmup=warmup, log=True)


def _robust_accuracies(run: Run) -> list[float]:
    """Read those of the raw mask and the finetuned network, in percent."""
    return [100 * run.results[f"evaluate-{stage}"]["robust_accuracy"] for stage in ("prune", "finetune")]


def _geometric_mean(runs: Sequence[Run], metric: str) -> pd.Series:
    """Average a tracked metric over runs, by epoch."""
    return np.exp(np.log(pd.DataFrame([run.tracked(metric) for run in runs])).mean())
