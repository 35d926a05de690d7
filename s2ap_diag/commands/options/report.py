"""The options of ``s2ap-diag report``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, OutputFile, check_outputs, quiet_option


@click.command(name="report")
@click.argument("runs", type=EXISTING)
@click.option("--out", type=OutputFile(), help="The file to write.  [default: RUNS/report.html]")
@click.option("--title", help="The report's heading.  [default: the folder's name]")
@quiet_option
def command(**options: Any) -> None:
    """Show all runs under the folder RUNS in one HTML file that opens in any browser, without a network.

    It begins with the answer: each arm against the first, what check found, charts of all arms. Then a table to
    sort and filter, and for each run its curves, its layers' mask changes, config, environment and files.
    Runs that are half done or damaged are listed with the reason.
    """
    from s2ap_diag.commands.report import run_command  # slow, and --help needs none of it

    check_outputs()
    run_command(**options)
