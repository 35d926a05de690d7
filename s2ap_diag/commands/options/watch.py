"""The options of ``s2ap-diag watch``."""

import click

from s2ap_diag.commands.options.shared import EXISTING


@click.command(name="watch")
@click.argument("runs", type=EXISTING)
def command(**options: object) -> None:
    """Follow RUNS, a run or a folder of runs, from another terminal, until they end.

    Stage, time left, loss, lambda_max over live channels, mask bits that z flips, h and margins by epoch, and what
    `check` would say by now. It reads what a run writes anyway. Without a terminal it prints once.
    """
    from s2ap_diag.commands.watch import run_command  # slow, and --help needs none of it

    run_command(**options)  # type: ignore[arg-type]
