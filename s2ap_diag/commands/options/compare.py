"""The options of ``s2ap-diag compare``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, output_options


@click.command(name="compare")
@click.argument("runs", nargs=-1, required=True, type=EXISTING)
@click.option("--arm", "arms", multiple=True, metavar="ARM",
              help="Given twice: compare these arms (orig, s2ap, awp, ...) of all RUNS.")  # fmt: skip
@click.option("--where", multiple=True, metavar="KEY=VALUE",
              help="Take only runs with this, as minimizer.gamma=0.01, and those without a perturbation.")  # fmt: skip
@output_options
def command(**options: Any) -> None:
    """Compare two arms: RUNS are two runs, two folders of runs, or, with --arm twice, folders that hold both.

    Runs of the same data, network, method and budget are paired by seed. Of each metric there are both means, their
    difference with its 95 % interval over seeds (from three on), and the number of seeds that would resolve it.
    """
    from s2ap_diag.commands.compare import run_command  # slow, and --help needs none of it

    run_command(**options)
