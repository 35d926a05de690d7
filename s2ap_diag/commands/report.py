"""``s2ap-diag report``: a folder of runs as one HTML file."""

import logging
from pathlib import Path

import click

from s2ap_diag.execution.progress import counting
from s2ap_diag.reading.results import run_folders
from s2ap_diag.report import write_report

log = logging.getLogger(__name__)


def run_command(runs: Path, out: Path | None, title: str | None, quiet: bool) -> None:
    """Write the report, and warn of each run that is left out."""
    out = out or runs / "report.html"
    total = sum(1 for _ in run_folders(runs)) if runs.is_dir() else 0
    with counting("report", total, quiet) as advance:
        skipped = write_report(runs, out, title, advance)
    for one in skipped:
        log.warning("skipped %s", " ".join(one.reason.split()))
    if not quiet:
        click.echo(str(out))
