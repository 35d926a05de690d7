"""``s2ap-diag evaluate``: clean and robust accuracy of checkpoints, with their intervals."""

import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np

from s2ap_core.config import AttackNorm, EvaluationSettings, ObjectiveSettings, parse_config
from s2ap_core.data import Dataset, load
from s2ap_core.data.cifar10c import CORRUPTIONS
from s2ap_core.errors import InputError
from s2ap_core.files.arrays import file_checksum
from s2ap_core.presets.effects import SUCH_AS
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.evaluation import evaluate
from s2ap_diag.curvature.adversary import objective_of, own_objective
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.progress import plain_progress
from s2ap_diag.output import security_curve
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import Table, make_table
from s2ap_diag.reading.files import expand, how_read, told_apart
from s2ap_diag.reading.source import Source

log = logging.getLogger(__name__)


def run_command(
    checkpoints: tuple[Path, ...],
    attack: str | None,
    norm: AttackNorm | None,
    eps: tuple[str, ...],
    n: int | None,
    batch_size: int,
    corruption: str | None,
    severity: int | None,
    evals: Path | None,
    source: Source,
    output: Output,
    device: str,
    seed: int,
) -> None:
    """Evaluate each checkpoint at each radius, on each corruption where there are some."""
    corrupted = source.dataset == "cifar10c"
    if (corruption or severity) and not corrupted:
        raise click.UsageError("--corruption and --severity go with --dataset cifar10c")
    device = check_device(device)
    attack = attack or ("none" if corrupted else "autoattack")
    if attack == "none" and (norm is not None or eps):
        raise click.UsageError("--norm and --eps have no effect: no attack is made; leave them out, or give --attack")
    asked = [
        {"attack": attack, "norm": norm, "eps": radius, "n": n, "batch_size": batch_size} for radius in eps or [None]
    ]
    parsed = [parse_config({"evaluation": one}, "options").evaluation for one in asked]
    settings = list({one.eps: one for one in parsed}.values())  # 0.5 and 1/2 are one radius
    records: list[dict[str, Any]] = []
    with plain_progress(output.quiet) as progress:
        task = progress.add_task("evaluate", total=1)
        for path in expand(checkpoints, "checkpoint"):
            checkpoint = source.open(path, device)
            trained = trained_threat(checkpoint, norm if not eps else None)
            named = corruptions(source.root, corruption or "all", severity or 3) if corrupted else None
            of_checkpoint: list[dict[str, Any]] = []
            for which, data in named or [({}, source.data(checkpoint))]:
                for one in settings:
                    result = evaluate(
                        checkpoint.model,
                        data.to(device),
                        one,
                        eps=trained.eps,
                        norm=norm or trained.norm,
                        seed=seed,
                        about={"checkpoint": file_checksum(path), **which},
                        file=evaluation_file(path, evals, one, norm or trained.norm, which, seed),
                        on_batch=lambda done, total: progress.update(task, completed=done, total=total),
                    )
                    for warning in result.warnings():
                        log.warning("%s: %s", " ".join([str(path), *map(str, which.values())]), warning)
                    said = {key: checkpoint.header[key] for key in ("epoch", "read") if key in checkpoint.header}
                    about = {"checkpoint": str(path), "epoch": None} | said | which
                    of_checkpoint.append({**about, **result.summary(), **about})
            records += of_checkpoint + means(of_checkpoint)
    if len(settings) > 1:
        security_curve.warn(records)
    output.emit(records, table_of(records), notes=how_read((Path(r["checkpoint"]), r) for r in records))
    if output.plot is not None:
        (security_curve.draw if len(settings) > 1 else draw)(records, output.plot)


def evaluation_file(
    path: Path,
    evals: Path | None,
    settings: EvaluationSettings,
    norm: AttackNorm,
    which: dict[str, Any],
    seed: int,
) -> Path | None:
    """Name the file for correctness by image; None for another tool's checkpoint unless a folder is given."""
    if evals is None:
        run = path.parent.parent
        if path.parent.name != "ckpt" or not (run / "config.toml").is_file():
            return None
        evals = run / "evals"
    eps = "" if settings.eps is None else f"eps{settings.eps}".replace("/", "of")
    parts = [path.name.partition(".")[0], settings.attack, norm, eps, *map(str, which.values()), f"seed{seed}"]
    return evals / ("-".join(filter(None, parts)) + ".npz")


def corruptions(root: Path | None, corruption: str, severity: int) -> Iterator[tuple[dict[str, Any], Dataset]]:
    """Load CIFAR-10-C: what each corruption is called in a record, and its images.

    Raises:
        InputError: if there is no such corruption, or its files cannot be used.
    """
    for name in CORRUPTIONS if corruption == "all" else (corruption,):
        data = load("cifar10c", root, corruption=name, severity=severity)
        yield {"corruption": name, "severity": severity}, data


def means(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over the corruptions at each radius, where there are several.

    Without an interval: they are of the same images, and not a random sample.
    """
    by_radius: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_radius.setdefault(record["eps"], []).append(record)
    accuracies = [key for key in records[0] if key.endswith("_accuracy")]
    kept = ("checkpoint", "epoch", "severity", "attack", "norm", "eps", "seed", "n")
    return [
        {
            **{key: alike[0][key] for key in kept},
            "corruption": "mean",
            **{key: float(np.mean([record[key] for record in alike])) for key in accuracies},
        }
        for alike in by_radius.values()
        if len(alike) > 1 and "corruption" in alike[0]
    ]


def trained_threat(checkpoint: Checkpoint, asked: AttackNorm | None) -> ObjectiveSettings:
    """Give norm and eps of the checkpoint's own training, else the paper's: Linf, 4/255 on ImageNet, 8/255 elsewhere.

    Args:
        asked: the norm that its radius is meant for, None where it is not needed or its own.

    Raises:
        InputError: if that is another norm than its own.
    """
    own = objective_of(checkpoint)
    if "eps" not in own_objective(checkpoint):
        usual = Fraction(4, 255) if checkpoint.header.get("dataset") == "imagenet" else Fraction(8, 255)
        own = ObjectiveSettings(eps=usual)
    if asked not in (None, own.norm):
        raise InputError(
            f"{checkpoint.path}: --norm {asked} needs --eps, such as {SUCH_AS[asked]['eps']}: the training's radius is "
            f"that of {own.norm}"
        )
    return own


def table_of(records: list[dict[str, Any]]) -> Table:
    """Make a row for each checkpoint and corruption, accuracies in percent with their 95 % intervals."""
    first = records[0]
    cells: dict[str, list[Any]] = {"checkpoint": told_apart([Path(r["checkpoint"]) for r in records])}
    if "corruption" in first:
        cells["corruption"] = [r["corruption"] for r in records]
    if len({r["norm"] for r in records}) > 1:
        cells["norm"] = [r["norm"] for r in records]
    several = len({r["eps"] for r in records}) > 1
    if several:
        cells["eps"] = [r["eps"] for r in records]
    for kind in kinds(first):
        cells[kind] = [_with_interval(r, kind) for r in records]
    cells["n"] = [r["n"] for r in records]
    if first["attack"] != "none":
        cells["random noise"] = [round(100 * r["noise_accuracy"], 1) for r in records]
        cells["zero gradient"] = [_percent(r.get("zero_gradient")) for r in records]
    threat = (
        "no attack"
        if first["attack"] == "none"
        else ", ".join([first["attack"], *dict.fromkeys(r["norm"] for r in records)])
    )
    threat += "" if several or first["attack"] == "none" else f", eps {first['eps']}"
    if "severity" in first:
        threat += f", CIFAR-10-C at severity {first['severity']}"
    title = f"{threat}; accuracies in %, 95 % Wilson intervals"
    gives_way = ["zero gradient", "random noise", "n"]
    return make_table(title, list(cells), list(zip(*cells.values(), strict=True)), gives_way=gives_way)


def kinds(record: dict[str, Any]) -> list[str]:
    """Name the accuracies that were measured."""
    return ["clean"] if record["attack"] == "none" else ["clean", "robust"]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _with_interval(record: dict[str, Any], kind: str) -> str:
    shown = f"{100 * record[f'{kind}_accuracy']:.1f}"
    if f"{kind}_interval" not in record:
        return shown
    low, high = record[f"{kind}_interval"]
    return f"{shown} [{100 * low:.1f}, {100 * high:.1f}]"


def draw(records: list[dict[str, Any]], file: Path) -> None:
    """Tabulate the accuracies of each checkpoint, or corruption, with their intervals."""
    import pandas as pd  # takes longer, with what draws it, than a small evaluation

    from s2ap_diag.output import plots  # as above

    told = told_apart([Path(r["checkpoint"]) for r in records])
    names = [r.get("corruption", name) for r, name in zip(records, told, strict=True)]
    unknown = (np.nan, np.nan)  # of a mean over corruptions
    columns = {kind: 100 * np.array([r[f"{kind}_accuracy"] for r in records]) for kind in kinds(records[0])}
    intervals = {kind: 100 * np.array([r.get(f"{kind}_interval", unknown) for r in records]) for kind in columns}
    errors = {kind: plots.reaches(columns[kind], intervals[kind]) for kind in columns}
    with plots.picture(file, plots.COLUMN, 2.4) as axes:
        plots.bars(axes, pd.DataFrame(columns, index=names), ylabel="accuracy (%)", errors=errors)
