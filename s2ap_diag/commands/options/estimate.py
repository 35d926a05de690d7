"""The options of ``s2ap-diag estimate``."""

from typing import Any

import click

from s2ap_diag.commands.options import completion
from s2ap_diag.commands.options.shared import EXISTING, scale_option, set_option, table_options


@click.command(name="estimate")
@click.argument("source", metavar="PRESET|CONFIG|GRID", shell_complete=completion.runs)
@click.option(
    "--device",
    default="a6000",
    show_default=True,
    metavar="KIND",
    help="a6000: the published code, by the paper's Table 7; h100: this code, as docs/guide.md has it; cpu, cuda or "
    "cuda:N: a pass is timed here.",
)
@click.option(
    "--benchmark",
    type=EXISTING,
    help="In the place of --device: JSON of `python -m benchmarks --only table7`, seconds per iteration of a device.",
)
@click.option("--gpus", default="1,8,64", show_default=True, help="Numbers of devices for the wall time of a grid.")
@scale_option
@set_option
@table_options
def command(**options: Any) -> None:
    """Estimate what a run or a grid of runs takes: time, memory and disk space.

    Of a PRESET or CONFIG by stage, of a GRID (a TOML file or one of `sweep --list`) by network. Operations are counted
    from the network itself; what is assumed is said below the table.
    """
    from s2ap_diag.commands.estimate import run_command  # slow, and --help needs none of it

    run_command(**options)
