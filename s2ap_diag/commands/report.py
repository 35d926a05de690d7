"""``s2ap-diag report``: a folder of runs as one HTML file."""

import logging
from pathlib import Path

import click

from s2ap_diag.commands._common import EXISTING, counting, quiet_option
from s2ap_diag.reading.results import run_folders
from s2ap_diag.report import write_report

log = logging.getLogger(__name__)


@click.command(name="report")
@click.argument("runs", type=EXISTING)
@click.option("--out", type=EXISTING, help="The file to write.  [default: RUNS/report.html]")
@click.option("--title", help="The report's heading.  [default: the folder's name]")
@quiet_option
def command(runs: Path, out: Path | None, title: str | None, quiet: bool) -> None:
    """Show all runs under the folder RUNS in one HTML file that opens in any browser, without a network.

    A table to sort, and for each run its curves, its layers' mask changes, config, environment and files.
    Runs that are half done or damaged are listed with the reason.
    """
    out = out or runs / "report.html"
    total = sum(1 for _ in run_folders(runs)) if runs.is_dir() else 0
    with counting("report", total, quiet) as advance:
        skipped = write_report(runs, out, title, advance)
    for one in skipped:
        log.warning("skipped %s", " ".join(one.reason.split()))
    if not quiet:
        click.echo(str(out))
