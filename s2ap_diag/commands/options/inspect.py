"""The options of ``s2ap-diag inspect``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, Number, output_options, source_options


@click.command(name="inspect")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option("--gamma", type=Number(min=0, min_open=True),
              help="Say the most mask entries that |z| <= gamma |s| can flip.  [default: the search's]")  # fmt: skip
@source_options
@output_options
def command(**options: Any) -> None:
    """Say what CHECKPOINTS hold; of a single one, layer by layer."""
    from s2ap_diag.commands.inspect import run_command  # slow, and --help needs none of it

    run_command(**options)
