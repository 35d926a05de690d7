"""The options of ``s2ap-diag demo``."""

from pathlib import Path
from typing import Any

import click

from s2ap_diag.commands.options.shared import FOLDER, device_option, output_options


@click.command(name="demo")
@click.option("--out", type=FOLDER, default=Path("runs/demo"), show_default=True, help="Folder of the runs.")
@click.option("--quick", is_flag=True, help="One fold and a few epochs: a smoke test.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed.")
@output_options
@device_option
def command(**options: Any) -> None:
    """Prune a narrow ResNet-18 on digits by HYDRA with and without S2AP, on three folds; measure all; draw Figure 1.

    As many runs at once as there are cores, a thread each. An interrupted demo goes on where it stopped when it is
    called again.
    """
    from s2ap_diag.commands.demo import run_command  # slow, and --help needs none of it

    run_command(**options)
