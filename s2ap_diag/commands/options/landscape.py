"""The options of ``s2ap-diag landscape``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import (
    EXISTING,
    FOLDER,
    Number,
    device_option,
    output_options,
    seed_option,
    source_options,
)


@click.command(name="landscape")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option("--flips", type=Number(0, 1, min_open=True), default=0.005, show_default=True,
              help="Share of the mask's bits that a step to the end of an axis flips.")  # fmt: skip
@click.option("--points", type=click.IntRange(min=1), default=5, show_default=True,
              help="Steps to each side of the scores, on each axis: (2 points + 1)^2 evaluations.")  # fmt: skip
@click.option("--batch-norm", type=click.Choice(["running", "batch"]), default="running", show_default=True,
              help="Statistics BatchNorm normalises with.")  # fmt: skip
@click.option("--images", type=click.IntRange(min=1), default=512, show_default=True, help="Training images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--objective", help="trades, pgd-at, mart, fast-at or clean; default the checkpoint's own, or trades.")
@click.option("--eps", help="Radius of the adversary; default the checkpoint's own, or 8/255.")
@click.option("--out", type=FOLDER, help="Folder for what is measured, from which an interrupted call goes on.  "
              "[default: RUN/landscape for RUN/ckpt/FILE]")  # fmt: skip
@source_options
@output_options
@device_option
@seed_option
def command(**options: Any) -> None:
    """Evaluate the loss around the scores of CHECKPOINTS, along the top eigenvector of live channels and S2AP's z.

    The axes count flipped mask bits, with the relative length rho of the step beside them; all checkpoints are shown
    at one scale. The passes it takes are said beforehand, and what is measured is kept and not measured again.
    """
    from s2ap_diag.commands.landscape import run_command  # slow, and --help needs none of it

    run_command(**options)
