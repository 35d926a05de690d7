"""``s2ap-diag verify``: are these checkpoints what they claim to be?"""

import sys
from pathlib import Path
from typing import Any

import click

from s2ap_core.checkpoints import Checkpoint, load_checkpoint
from s2ap_diag.commands._common import EXISTING, emit, foreign_options, make_table, output_options, quiet_option
from s2ap_diag.sources import expand, open_checkpoint
from s2ap_diag.verification import Finding, verify


@click.command(name="verify")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@foreign_options
@output_options
@quiet_option
def command(
    checkpoints: tuple[Path, ...],
    keep: float | None,
    network: str | None,
    dataset: str | None,
    root: Path | None,
    json_file: str | None,
    csv_file: Path | None,
    plot_file: Path | None,
    quiet: bool,
) -> None:
    """Check CHECKPOINTS: counts, dead layers and channels, zeros outside the mask, finite values, ties.

    One line for each finding; exit status 1 if any is a violation.
    """
    found: list[tuple[Path, Finding]] = []
    paths = expand(checkpoints, "checkpoint")
    for path in paths:
        checkpoint = open_checkpoint(path, network=network, dataset=dataset, keep=keep)
        found += [(path, finding) for finding in verify(checkpoint, searched(checkpoint))]
    records: list[dict[str, Any]] = [
        {"checkpoint": str(path), "kind": f.kind, "layer": f.layer, "message": f.message} for path, f in found
    ]
    violations = sum(f.kind == "violation" for _, f in found)
    rows = [[path.name, f.kind, f.layer, f.message] for path, f in found]
    title = f"{len(paths)} checkpoints, {violations} violations"
    table = make_table(title, ["checkpoint", "finding", "layer", "what"], rows)
    emit(records, table, json_file=json_file, csv_file=csv_file, quiet=quiet)
    sys.exit(1 if violations else 0)


def searched(checkpoint: Checkpoint) -> Checkpoint | None:
    """The search's result beside a finetuned checkpoint of ours."""
    beside = checkpoint.path.with_name("prune-best.safetensors")
    if checkpoint.header.get("stage") == "finetune" and beside.is_file():
        return load_checkpoint(beside)
    return None
