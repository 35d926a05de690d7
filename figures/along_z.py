"""``python -m figures.along_z``: which sharpness along z an optimizer feels, over a search's epochs; not in the paper.

On one batch of each checkpoint, with BatchNorm normalising by the batch as the search does:

- the rise ``L(s + z) - L(s)``;
- the secant curvature ``(g(s + z) - g(s)) . z / |z|^2``, which S2AP's step is made of;
- the surrogate's ``z . H z / |z|^2``, at the mask of s: what eigenvalues are of.

The first two see the mask bits that z flips and nothing else, the third does not see them.
"""

from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from s2ap_core.files.atomic import write_file
from s2ap_core.masks.layers import one_mask
from s2ap_core.modes import frozen_statistics, train_mode
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.objectives import build_objective
from s2ap_diag.commands.options.shared import EXISTING
from s2ap_diag.curvature.adversary import Adversary, objective_of
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.secant import probe
from s2ap_diag.curvature.tracking import batch_loss
from s2ap_diag.output.tables import make_table, show_table, to_csv
from s2ap_diag.reading.files import expand
from s2ap_diag.reading.source import Source

READINGS = ("loss_rise", "secant", "surrogate")


def read_along(checkpoint: Checkpoint, batch: tuple[Tensor, Tensor, Tensor], gamma: float) -> dict[str, Any]:
    """Read the three along the z of one gamma."""
    model, objective = checkpoint.model, build_objective(objective_of(checkpoint))
    optimizer = torch.optim.SGD([*model.parameters()])
    with train_mode(model, True):  # BatchNorm normalises by the batch, as in the search
        with frozen_statistics(model), one_mask(model):
            here = objective.loss(model, *batch)
            here.backward()
        there = probe(model, gamma, lambda: objective.loss(model, *batch), optimizer)
    optimizer.zero_grad()
    z = torch.cat([part.flatten() for part in there.z])
    with ScoreHessian(model, batch_loss(objective), [batch], batch_norm="batch") as hessian:
        surrogate = z @ hessian.matvec(z) / z.square().sum()
    return {
        "epoch": checkpoint.header.get("epoch"),
        "gamma": gamma,
        "flips": there.flips,
        "loss_rise": float(there.loss - here),
        "secant": float(there.products.sum() / there.squares.sum()),
        "surrogate": float(surrogate),
    }


def agreements(readings: pd.DataFrame) -> pd.DataFrame:
    """Compute Spearman's correlation of each two readings over the epochs, for each gamma."""
    rows = []
    for gamma, group in readings.groupby("gamma"):
        for a, b in (("secant", "loss_rise"), ("surrogate", "loss_rise"), ("surrogate", "secant")):
            rho = float(spearmanr(group[a], group[b]).statistic)
            rows.append({"gamma": gamma, "first": a, "second": b, "spearman": rho, "epochs": len(group)})
    return pd.DataFrame(rows)


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@click.option("--gamma", "gammas", multiple=True, type=float, default=(1e-6, 0.001, 0.01), show_default=True)
@click.option("--images", type=click.IntRange(min=2), default=128, show_default=True, help="Of the batch.")
@click.option("--csv", type=EXISTING, help="Write the readings.")
def command(checkpoints: tuple[Path, ...], gammas: tuple[float, ...], images: int, csv: Path | None) -> None:
    """Read three kinds of curvature along z in CHECKPOINTS of a search, and how they agree."""
    source = Source()
    rows = []
    for path in expand(checkpoints, "checkpoint"):
        if "epoch" not in path.stem:
            continue
        checkpoint = source.open(path)
        adversary = Adversary(build_objective(objective_of(checkpoint)), 0)
        (batch,) = adversary.batches(checkpoint.model, source.data(checkpoint), images, images)
        rows += [read_along(checkpoint, batch, gamma) for gamma in gammas]
    if not rows:
        raise click.ClickException("no checkpoint of a search's epoch among them; give RUN/ckpt")
    readings = pd.DataFrame(rows)
    if csv is not None:
        write_file(csv, to_csv(readings))
    cells = [[row["epoch"], f"{row['gamma']:g}", row["flips"], *(f"{row[k]:.3g}" for k in READINGS)]
             for row in rows]  # fmt: skip
    show_table(make_table("curvature along z", ["epoch", "gamma", "flips", *READINGS], cells))
    found = agreements(readings)
    cells = [[f"{r.gamma:g}", f"{r.first}, {r.second}", f"{r.spearman:.2f}"] for r in found.itertuples()]
    show_table(make_table("rank correlation over the epochs", ["gamma", "of", "Spearman"], cells))


if __name__ == "__main__":
    command()
