"""The options of ``s2ap-diag sharpness``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import (
    EXISTING,
    Number,
    OutputFile,
    device_option,
    output_options,
    seed_option,
    source_options,
)


@click.command(name="sharpness")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option("--method", type=click.Choice(["lanczos", "power", "pyhessian"]), default="lanczos", show_default=True,
              help="power is the paper's: ten iterations, converged or not.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(min=1),
              help="Of the method, at most; a product each.  [default: 64 of lanczos, 10 of power]")  # fmt: skip
@click.option("--tolerance", type=Number(min=0, min_open=True),
              help="Stop at this residual.  [default: 0.01 of lanczos]")  # fmt: skip
@click.option("--thorough", is_flag=True, help="The paper's defaults instead: 1,024 images, the five rho of Table 13, "
              "2 ascents of 20 steps, and a residual of 1e-4; some five times the time.")  # fmt: skip
@click.option(
    "--batch-norm", multiple=True, type=click.Choice(["running", "batch"]), default=["running"], show_default=True,
    help="Statistics BatchNorm normalises with: part of the metric. Given twice, both are measured.",
)  # fmt: skip
@click.option("--by-layer", "by_layer", flag_value="layer", help="lambda_max of each layer's diagonal block too.")
@click.option("--by-block", "by_layer", flag_value="block", help="The same for blocks of layers, such as layer1.0.")
@click.option("--rho", multiple=True, type=Number(min=0),
              help="Radius of the loss difference; may be repeated.  [default: 0.001, 0.005, 0.01]")  # fmt: skip
@click.option("--no-loss-difference", is_flag=True, help="lambda_max alone.")
@click.option(
    "--spectrum", type=OutputFile(picture=True), help="Draw the density of all eigenvalues, and estimate the trace."
)
@click.option("--ascent", type=click.Choice(["exchange", "auto-pgd"]),
              help="How it is sought: from mask to mask, or as in the paper, as always in the l2 ball.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), help="Of an ascent.  [default: 10]")
@click.option("--restarts", type=click.IntRange(min=1), help="Ascents for each rho.  [default: 1]")
@click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf", show_default=True,
              help="Of Eq. 12: |v / c| <= rho.")  # fmt: skip
@click.option("--scale", type=click.Choice(["score", "one"]), default="score", show_default=True,
              help="c of Eq. 12: |s| or 1.")  # fmt: skip
@click.option("--recraft", is_flag=True, help="Make the adversarial examples anew at each step.")
@click.option("--images", type=click.IntRange(min=1), help="Training images.  [default: 512]")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--objective", help="trades, pgd-at, mart, fast-at or clean; default the checkpoint's own, or trades.")
@click.option("--eps", help="Radius of the adversary; default the checkpoint's own, or 8/255.")
@click.option("--workers", type=click.IntRange(min=1), help="Checkpoints at once.  [default: one for each core]")
@click.option("--resume", is_flag=True, help="Measure what the file of --json does not hold yet.")
@source_options
@output_options
@device_option
@seed_option
def command(**options: Any) -> None:
    """Measure CHECKPOINTS (files or folders, ours or another tool's) by lambda_max and loss difference.

    Of a folder, the checkpoints that have scores are measured, in the order of their epochs. The file of --json is
    written anew after each of several, so that --resume goes on from there.
    """
    from s2ap_diag.commands.sharpness import run_command  # slow, and --help needs none of it

    run_command(**options)
