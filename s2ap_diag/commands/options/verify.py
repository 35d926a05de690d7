"""The options of ``s2ap-diag verify``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, output_options, source_options


@click.command(name="verify")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@source_options
@output_options
def command(**options: Any) -> None:
    """Check CHECKPOINTS: counts, dead layers and channels, zeros outside the mask, finite values, ties.

    One line for each finding; exit status 1 if any is a violation.
    """
    from s2ap_diag.commands.verify import run_command  # slow, and --help needs none of it

    run_command(**options)
