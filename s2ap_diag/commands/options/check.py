"""The options of ``s2ap-diag check``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, table_options


@click.command(name="check")
@click.argument("runs", type=EXISTING)
@click.option(
    "--tables",
    type=EXISTING,
    help="Folder that `python -m figures` wrote: its winners are held to their intervals.  [default: RUNS]",
)
@table_options
def command(**options: Any) -> int:
    """Ask of RUNS, a run or a folder of runs, what a reviewer would: can these numbers be what they seem?

    One line with a remedy for each condition that fails; exit status 1 if any does.
    """
    from s2ap_diag.commands.check import run_command  # slow, and --help needs none of it

    return run_command(**options)
