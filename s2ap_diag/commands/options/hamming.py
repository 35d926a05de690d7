"""The options of ``s2ap-diag hamming``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, output_options


@click.command(name="hamming")
@click.argument("masks", nargs=-1, required=True, type=EXISTING)
@click.option("--against", type=click.Choice(["first", "previous", "other"]), default="first", show_default=True,
              help="What each mask is compared with: its folder's first mask, the one before it, or that of "
              "the same epoch in the other of two folders.")  # fmt: skip
@click.option("--by-layer", is_flag=True, help="Draw h of each layer over the epochs.")
@click.option("--per-kept", is_flag=True, help="Draw and tabulate h per kept weight instead of per entry.")
@click.option("--keep", type=float, help="Fraction kept, for checkpoints that do not say it.")
@click.option("--network", help="The network, for checkpoints that do not say it and hold more than its layers.")
@output_options
def command(**options: Any) -> None:
    """Compare MASKS: a folder of epochs with its first mask, two or more folders, or single files.

    Two folders also give the difference of their distances, first minus second, epoch by epoch: it is
    positive where the second is the more stable.
    """
    from s2ap_diag.commands.hamming import run_command  # slow, and --help needs none of it

    run_command(**options)
