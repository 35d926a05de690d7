"""``s2ap-diag verify``: are these checkpoints what they claim to be?"""

import sys
from pathlib import Path
from typing import Any

from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import count, make_table
from s2ap_diag.reading.files import expand, how_read
from s2ap_diag.reading.source import Source
from s2ap_diag.verification import Finding, verify

SEARCHED = "prune-best.safetensors"
"""The search's result beside a finetuned network."""


def run_command(
    checkpoints: tuple[Path, ...],
    source: Source,
    output: Output,
) -> None:
    """Check each checkpoint, show the findings, and exit with 1 on a violation."""
    findings: list[tuple[Path, Finding]] = []
    paths = expand(checkpoints, "checkpoint")
    searches: dict[Path, Checkpoint] = {}

    def opened(path: Path) -> Checkpoint:
        """Open a checkpoint; a search's result is kept, since the finetuned network is checked against it, too."""
        if path.name != SEARCHED:
            return source.open(path)
        if path not in searches:
            searches[path] = source.open(path)
        return searches[path]

    read: dict[Path, dict[str, Any]] = {}
    for path in paths:
        checkpoint = opened(path)
        read[path] = checkpoint.header
        beside = path.with_name(SEARCHED)
        finetuned = checkpoint.header.get("stage") == "finetune" and beside.is_file()
        search = opened(beside) if finetuned else None
        findings += [(path, finding) for finding in verify(checkpoint, search)]
    records: list[dict[str, Any]] = [
        {"checkpoint": str(path), "kind": f.kind, "layer": f.layer, "message": f.message} for path, f in findings
    ]
    violations = sum(f.kind == "violation" for _, f in findings)
    rows = [[path.name, f.kind, f"{f.layer}: {f.message}" if f.layer else f.message] for path, f in findings]
    title = f"{count(len(paths), 'checkpoint')}, {count(violations, 'violation')}"
    table = make_table(title, ["checkpoint", "finding", "what"], rows)
    output.emit(records, table, notes=how_read(read.items()))
    sys.exit(1 if violations else 0)
