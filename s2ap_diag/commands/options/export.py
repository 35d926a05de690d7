"""The options of ``s2ap-diag export``."""

from typing import Any

import click

from s2ap_diag.commands.options.shared import EXISTING, OutputFile, device_option, output_options, source_options


@click.command(name="export")
@click.argument("run", type=EXISTING)
@click.option("--out", type=OutputFile(), required=True,
              help="FILE.safetensors, or FILE.pt2 for torch.export; with --for, FILE.pt.")  # fmt: skip
@click.option("--for", "benchmark", type=click.Choice(["apb"]),
              help="Write what AdversarialPruningBenchmark loads, and the entry of its leaderboard.")  # fmt: skip
@click.option("--n", type=click.IntRange(min=1), default=128, show_default=True, help="Number of test images.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True, help="Timed forward passes.")
@source_options
@output_options
@device_option
def command(**options: Any) -> None:
    """Write the smaller dense network of RUN, a run of hydra-channels or harp-channels or a checkpoint of one.

    The outputs of both are compared on test images first, and their forward passes timed in turn. With --for, any
    result of a ResNet-18 or VGG-16 of full width is written dense, with zeros.
    """
    from s2ap_diag.commands.export import run_command  # slow, and --help needs none of it

    run_command(**options)
