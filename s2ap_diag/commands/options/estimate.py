"""The options of ``s2ap-diag estimate``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, scale_option, set_option, table_options


@click.command(name="estimate")
@click.argument("grid")
@click.option("--gpus", default="1,8,64", show_default=True, help="Numbers of devices for the wall time.")
@click.option(
    "--benchmark",
    type=EXISTING,
    help="JSON of `python -m benchmarks --only table7`: seconds per iteration of your device.  "
    "[default: the paper's Table 7, on an A6000]",
)
@scale_option
@set_option
@table_options
def command(**options: Any) -> None:
    """Estimate hours of a device, wall time and disk space of GRID, a TOML file or one of `sweep --list`."""
    from s2ap_diag.commands.estimate import run_command  # slow, and --help needs none of it

    run_command(**options)
