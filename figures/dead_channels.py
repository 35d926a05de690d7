"""``python -m figures.dead_channels CHECKPOINT``: what BatchNorm's eps does to lambda_max; not a table of the paper.

A channel that keeps no weight is a constant 0, which BatchNorm divides by the root of eps. Where there is one,
lambda_max goes with 1/eps, and so says nothing of the loss; over the scores of the other channels it stays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_diag.curvature.adversary import objective_of
from s2ap_diag.curvature.curvature import Curvature
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.reading.source import Source
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness

MODES: tuple[BatchNormMode, ...] = get_args(BatchNormMode)


def read(path: Path, eps: float, mode: BatchNormMode, images: int) -> Curvature:
    """Take both readings of a checkpoint whose BatchNorm layers have this eps.

    Raises:
        InputError: if the file is no checkpoint of a search.
    """
    checkpoint = load_checkpoint(path)
    for module in checkpoint.model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = eps
    settings = SharpnessSettings(batch_norm=mode, images=images, rho=())
    return measure_sharpness(
        checkpoint, Source(None, None, None, None).data(checkpoint), objective_of(checkpoint), settings
    ).curvature


def markdown(path: Path, many_eps: Sequence[float], images: int) -> str:
    """Write a row for each eps, as a Markdown table."""
    heads = [f"{what}, {mode}" for mode in MODES for what in ("λ_max", "live λ_max", "dead share")]
    lines = ["| eps | dead channels | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for eps in many_eps:
        readings = [read(path, eps, mode, images) for mode in MODES]
        cells = [f"{one.lambda_max:.4g} | {one.lambda_max_live:.4g} | {one.dead_share:.4f}" for one in readings]
        lines.append(f"| {eps:g} | {readings[0].dead_channels} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--eps", "many_eps", multiple=True, type=float, default=(1e-5, 1e-4, 1e-3), show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=128, show_default=True)
def command(checkpoint: Path, many_eps: tuple[float, ...], images: int) -> None:
    """Measure CHECKPOINT, a file of a search, at several eps of BatchNorm."""
    click.echo(markdown(checkpoint, many_eps, images))


if __name__ == "__main__":
    command()
