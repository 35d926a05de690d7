"""The options of ``s2ap-diag evaluate``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import (
    EXISTING,
    FOLDER,
    device_option,
    output_options,
    seed_option,
    source_options,
)


@click.command(name="evaluate")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--attack",
    type=click.Choice(["autoattack", "apgd", "pgd-50", "none"]),
    help="AutoAttack (standard; the default), its APGD-CE and targeted APGD alone, PGD-50 as a quick look, or none: "
    "clean accuracy alone, the default on cifar10c.",
)
@click.option(
    "--norm",
    type=click.Choice(["Linf", "L2", "L1"]),
    help="Default that of the checkpoint's training; another needs --eps.",
)
@click.option(
    "--eps",
    multiple=True,
    help="Radius as a number or fraction; default that of the checkpoint's training. Several make a security curve, "
    "which --plot draws.",
)
@click.option("--n", type=click.IntRange(min=1), help="Number of test images, the first ones; default all.")
@click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True)
@click.option(
    "--corruption", help="With --dataset cifar10c: one of its corruptions, or all of them; the default is all."
)
@click.option("--severity", type=click.IntRange(1, 5), help="With --dataset cifar10c: how strong; the default is 3.")
@click.option(
    "--evals",
    type=FOLDER,
    help="Folder for correctness by image, saved after each batch and continued; default RUN/evals for RUN/ckpt/FILE.",
)
@source_options
@output_options
@device_option
@seed_option
def command(**options: Any) -> None:
    """Evaluate CHECKPOINTS on the test images: ours or another tool's, files or folders."""
    from s2ap_diag.commands.evaluate import run_command  # slow, and --help needs none of it

    run_command(**options)
