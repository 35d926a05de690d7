"""``s2ap-diag evaluate``: clean and robust accuracy of checkpoints, with their intervals."""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.table import Table

from s2ap_core.checkpoints import Checkpoint
from s2ap_core.config import parse_config
from s2ap_core.evaluation import evaluate
from s2ap_diag import plots
from s2ap_diag.commands._common import (
    EXISTING,
    check_device,
    data_of,
    device_option,
    emit,
    foreign_options,
    make_table,
    output_options,
    plain_progress,
    quiet_option,
    seed_option,
)
from s2ap_diag.sources import expand, open_checkpoint

log = logging.getLogger(__name__)


@click.command(name="evaluate")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--attack",
    type=click.Choice(["autoattack", "apgd", "pgd-50"]),
    default="autoattack",
    show_default=True,
    help="AutoAttack (standard), its APGD-CE and targeted APGD alone, or PGD-50 as a quick look.",
)
@click.option("--norm", type=click.Choice(["Linf", "L2", "L1"]), default="Linf", show_default=True)
@click.option("--eps", help="Radius as a number or fraction; default that of the checkpoint's training.")
@click.option("--n", type=click.IntRange(min=1), help="Number of test images, the first ones; default all.")
@click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True)
@foreign_options
@output_options
@device_option
@seed_option
@quiet_option
def command(
    checkpoints: tuple[Path, ...],
    attack: str,
    norm: str,
    eps: str | None,
    n: int | None,
    batch_size: int,
    keep: float | None,
    network: str | None,
    dataset: str | None,
    root: Path | None,
    json_file: str | None,
    csv_file: Path | None,
    plot_file: Path | None,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Evaluate CHECKPOINTS on the test images: ours or another tool's, files or folders."""
    check_device(device)
    asked = {"attack": attack, "norm": norm, "eps": eps, "n": n, "batch_size": batch_size}
    settings = parse_config({"evaluation": asked}, "options").evaluation
    records = []
    with plain_progress(quiet) as progress:
        task = progress.add_task("evaluate", total=1)
        for path in expand(checkpoints, "checkpoint"):
            found = open_checkpoint(path, network=network, dataset=dataset, keep=keep, device=device)
            result = evaluate(
                found.model,
                data_of(found, dataset, root).to(device),
                settings,
                eps=trained_radius(found),
                seed=seed,
                on_batch=lambda done, total: progress.update(task, completed=done, total=total),
            )
            for warning in result.warnings():
                log.warning("%s: %s", path, warning)
            records.append({"checkpoint": str(path), "epoch": found.header.get("epoch"), **result.summary()})
    if plot_file is not None:
        draw(records, plot_file)
    emit(records, table_of(records), json_file=json_file, csv_file=csv_file, quiet=quiet)


def trained_radius(checkpoint: Checkpoint) -> Fraction:
    """eps of the checkpoint's own training, else the paper's: 4/255 on ImageNet, 8/255 elsewhere."""
    own = (checkpoint.header.get("objective") or {}).get("eps")
    if own is not None:
        return Fraction(own)
    return Fraction(4, 255) if checkpoint.header.get("dataset") == "imagenet" else Fraction(8, 255)


def table_of(records: list[dict[str, Any]]) -> Table:
    """One row for each checkpoint, accuracies in percent with their 95 % intervals."""
    rows = [
        [
            "/".join(Path(r["checkpoint"]).parts[-3:]),
            *(_with_interval(r, kind) for kind in ("clean", "robust")),
            r["n"],
            round(100 * r["noise_accuracy"], 1),
            round(100 * r["zero_gradient"], 1),
        ]
        for r in records
    ]
    first = records[0]
    title = f"{first['attack']}, {first['norm']}, eps {first['eps']}; accuracies in %, 95 % Wilson intervals"
    return make_table(title, ["checkpoint", "clean", "robust", "n", "random noise", "zero gradient"], rows)


def _with_interval(record: dict[str, Any], kind: str) -> str:
    low, high = record[f"{kind}_interval"]
    return f"{100 * record[f'{kind}_accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def draw(records: list[dict[str, Any]], file: Path) -> None:
    """Clean and robust accuracy of each checkpoint."""
    names = [Path(r["checkpoint"]).stem for r in records]
    columns = {kind: [100 * r[f"{kind}_accuracy"] for r in records] for kind in ("clean", "robust")}
    with plots.picture(file, plots.COLUMN, 2.4) as axes:
        plots.bars(axes, pd.DataFrame(columns, index=names), ylabel="accuracy (%)")
