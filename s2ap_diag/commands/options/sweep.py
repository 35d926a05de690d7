"""The options of ``s2ap-diag sweep``."""

from typing import Any

import click

from s2ap_diag.commands.options import completion
from s2ap_diag.commands.options.shared import Number, device_option, quiet_option, scale_option, set_option


@click.command(name="sweep")
@click.argument("grid", required=False, shell_complete=completion.grids)
@click.option("--runs", "root", help="Folder of the runs, or an fsspec URL of it.  [default: runs/GRID]")
@click.option("--list", "list_grids", is_flag=True, help="List the grids that come with the package.")
@click.option("--dry-run", is_flag=True, help="Show what would run and what is done, and run nothing.")
@click.option("--status", is_flag=True, help="Show how the sweep in --runs stands, live on a terminal.")
@scale_option
@set_option
@click.option("--workers", type=click.IntRange(min=1), help="Runs at once.  [default: as many as fit]")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on this Ray cluster, e.g. auto or host:6379.")
@click.option("--gpus-per-run", default=0.0, type=Number(min=0), help="GPUs that a run takes; fractions share one.")
@device_option
@quiet_option
def command(**options: Any) -> int | None:
    """Run GRID, a TOML file or one of --list, each run once; called again, do what is missing or failed.

    What several runs begin with, such as a dense network, is done once. Exit status 1 if a run failed.
    """
    from s2ap_diag.commands.sweep import run_command  # slow, and --help needs none of it

    return run_command(**options)
