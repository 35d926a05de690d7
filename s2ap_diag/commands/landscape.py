"""``s2ap-diag landscape``: the loss around a checkpoint's scores, in flipped mask bits."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from s2ap_core.data import Dataset
from s2ap_core.errors import InputError
from s2ap_core.files.arrays import file_checksum, load_arrays, save_arrays
from s2ap_core.masks.layers import score_masks
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.objectives import build_objective
from s2ap_diag.curvature.adversary import Adversary, describe_adversary, objective_of
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.curvature.slices import Axis, Directions, Slice, measure, targets
from s2ap_diag.curvature.tracking import batch_loss
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.progress import counting
from s2ap_diag.output import landscape_plot
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import NOT_CONVERGED, Table, count, make_table, marked, show
from s2ap_diag.reading.files import expand, told_apart
from s2ap_diag.reading.source import Source
from s2ap_diag.sharpness import batches_of, without_scores

SOLVER = Lanczos()

AXES = "v: top eigenvector of live channels; z: S2AP's; +v: rise at that end"


@dataclass(frozen=True)
class Asked:
    """What is measured of each checkpoint."""

    flips: float
    points: int
    batch_norm: BatchNormMode
    images: int
    batch_size: int
    objective: str | None
    eps: str | None
    seed: int

    @property
    def side(self) -> int:
        """Places on an axis."""
        return 2 * self.points + 1


def run_command(
    checkpoints: tuple[Path, ...],
    flips: float,
    points: int,
    batch_norm: BatchNormMode,
    images: int,
    batch_size: int,
    objective: str | None,
    eps: str | None,
    out: Path | None,
    source: Source,
    output: Output,
    device: str,
    seed: int,
) -> None:
    """Measure the slice of each checkpoint, from where an earlier call stopped, and show them at one scale."""
    device = check_device(device)
    for option, place in (("--csv", output.csv), ("--json", output.json), ("--plot", output.plot)):
        if out is not None and place is not None and os.path.realpath(place) == os.path.realpath(out):
            raise InputError(f"{option} {place}: --out makes a folder of that name; name another file")
    asked = Asked(flips, points, batch_norm, images, batch_size, objective, eps, seed)
    opened = [source.open(path, device) for path in expand(checkpoints, "checkpoint")]
    scored = [checkpoint for checkpoint in opened if score_masks(checkpoint.model)]
    if not scored:
        raise without_scores(checkpoints[0])
    files = [Measured.of(checkpoint, asked, out) for checkpoint in scored]
    unfinished = [file for file in files if file.passes_left()]
    # Before the cost is told: data that are missing cost nothing.
    first_data = source.data(unfinished[0].checkpoint).to(device) if unfinished else None
    if not output.quiet:
        click.echo(cost(files, asked), err=True)
    with counting("landscape", sum(file.passes_left() for file in unfinished), output.quiet) as advance:
        for file in unfinished:
            data, first_data = first_data or source.data(file.checkpoint).to(device), None
            file.complete(data, advance)
    records = [file.record() for file in files]
    output.emit(records, table_of(records), rows=rows_of(records), notes=[AXES])
    if output.plot is not None:
        landscape_plot.draw(records, told_apart([file.checkpoint.path for file in files]), output.plot)


def cost(files: Sequence["Measured"], asked: Asked) -> str:
    """Say what is to be measured and what it costs, before it begins."""
    points = asked.side**2
    batches = -(-asked.images // asked.batch_size)
    left, known = sum(file.passes_left() for file in files), sum(file.found is not None for file in files)
    each_point = f"{count(batches, 'batch')} of {min(asked.images, asked.batch_size)}"
    said = f"{len(files)} x {points} points x {each_point}: {left * batches} forward passes"
    done = len(files) * points - left
    said += f" left, {done * batches} are measured" if done else ""
    if known < len(files):
        each = f"{SOLVER.iterations} Hessian-vector products and a gradient"
        said += f"; before them at most {each} over each batch, for {len(files) - known} of the checkpoints"
    return said


@dataclass
class Measured:
    """What is measured of a checkpoint, and the files that keep it.

    Attributes:
        stem: of the two files' paths; it has the checksum of what was asked and of the checkpoint in its name.
        found: the arrays of the plane and of the losses, None before the plane is known.
    """

    checkpoint: Checkpoint
    asked: Asked
    stem: Path
    found: dict[str, np.ndarray] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, asked: Asked, out: Path | None) -> "Measured":
        """Find what an earlier call measured of the same checkpoint in the same way.

        Raises:
            InputError: if it is another tool's checkpoint and no folder is named, or a file is damaged.
        """
        path, settings = checkpoint.path, objective_of(checkpoint, asked.objective, asked.eps)
        run = path.parent.parent
        if out is None and (path.parent.name != "ckpt" or not (run / "config.toml").is_file()):
            raise InputError(f"{path}: lies in no run; name a folder for what is measured by --out")
        key = json.dumps([file_checksum(path), vars(asked), settings.model_dump(mode="json")], sort_keys=True)
        name = f"{path.name.partition('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        one = cls(checkpoint, asked, (out or run / "landscape") / name)
        if one._plane.exists() and one._losses.exists():
            try:
                one.found = load_arrays(one._plane) | load_arrays(one._losses)
                one.about = json.loads(str(one.found["about"]))
            except (ValueError, KeyError) as error:
                raise InputError(f"{one._losses}: damaged; remove it and {one._plane} to measure anew") from error
        return one

    @property
    def _plane(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}-plane.npz")

    @property
    def _losses(self) -> Path:
        return self.stem.with_name(f"{self.stem.name}.npz")

    def passes_left(self) -> int:
        """Count the points to evaluate; those that no step reaches count until the plane is known."""
        if self.found is None:
            return self.asked.side**2
        reached = ~np.isnan(self.found["steps_z"])[:, None] & ~np.isnan(self.found["steps_eigenvector"])[None]
        return int((np.isnan(self.found["losses"]) & reached).sum())

    def complete(self, data: Dataset, advance: Any) -> None:
        """Measure what is missing, and save it row by row."""
        checkpoint, asked = self.checkpoint, self.asked
        objective = objective_of(checkpoint, asked.objective, asked.eps)
        adversary = Adversary(build_objective(objective), asked.seed)
        sizes = asked.images, asked.batch_size, asked.batch_norm
        batches, batch_norm = batches_of(checkpoint, adversary, data, *sizes)
        plane = Slice(checkpoint.model, batch_loss(adversary.objective), batches, asked.batch_norm)
        if self.found is None:
            entries = len(plane.landscape.kept)
            self._begin(plane, entries, batch_norm, describe_adversary(objective), len(batches))
        found = self.found
        assert found is not None
        device = plane.landscape.origin.device
        eigenvector, z = (torch.from_numpy(found[name]).to(device) for name in ("eigenvector", "z"))
        directions = Directions(eigenvector, z, **{name: self.about[name] for name in FOUND})
        axes = (axis_of(found, "eigenvector"), axis_of(found, "z"))
        for _ in measure(plane, directions, axes, found["losses"], found["flips"], self._save):
            advance()

    def _begin(self, plane: Slice, entries: int, batch_norm: str, adversary: str, batches: int) -> None:
        """Find the plane and its places, and save them."""
        directions = plane.directions(SOLVER, self.asked.seed)
        wanted = targets(entries, self.asked.flips, self.asked.points)
        self.about = {
            **{name: getattr(directions, name) for name in FOUND},
            "entries": entries,
            "batch_norm": batch_norm,
            "adversary": adversary,
            "batches": batches,
            "batch_size": self.asked.batch_size,
        }
        vectors = {"eigenvector": directions.eigenvector, "z": directions.z}
        self.found = {"about": np.array(json.dumps(self.about))}
        for name, vector in vectors.items():
            axis = plane.axis(vector, wanted)
            self.found |= {name: vector.cpu().numpy()}
            self.found |= {f"{what}_{name}": getattr(axis, what) for what in ("steps", "flips", "rho")}
        save_arrays(self._plane, self.found)
        shape = (self.asked.side, self.asked.side)
        self.found |= {"losses": np.full(shape, np.nan), "flips": np.zeros(shape, np.int64)}
        self._save()

    def _save(self) -> None:
        assert self.found is not None
        save_arrays(self._losses, {name: self.found[name] for name in ("losses", "flips")})

    def record(self) -> dict[str, Any]:
        """Make the entry of ``landscape --json``: losses in rows along z, columns along the eigenvector."""
        assert self.found is not None
        header, losses = self.checkpoint.header, self.found["losses"]
        return {
            "checkpoint": str(self.checkpoint.path),
            **{name: header.get(name) for name in ("epoch", "method", "minimizer", "gamma", "seed")},
            **self.about,
            "axes": {
                name: {what: _list(self.found[f"{what}_{name}"]) for what in ("steps", "flips", "rho")}
                for name in ("eigenvector", "z")
            },
            "loss": float(losses[self.asked.points, self.asked.points]),
            "losses": [_list(row) for row in losses],
            "flips": self.found["flips"].tolist(),
        }


FOUND = ("lambda_max_live", "residual", "converged", "hvps")
"""What is kept of the plane besides its vectors."""


def axis_of(found: dict[str, np.ndarray], name: str) -> Axis:
    """Give an axis of what was measured."""
    return Axis(*(found[f"{what}_{name}"] for what in ("steps", "flips", "rho")))


def _list(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value.item() for value in values]


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lay the losses out flat, a row for each point."""
    return [
        {
            "checkpoint": one["checkpoint"],
            **{f"{what}_{name}": axis[what][place] for name, axis, place in places for what in ("flips", "rho")},
            "flips": one["flips"][row][column],
            "loss": loss,
        }
        for one in records
        for row, losses in enumerate(one["losses"])
        for column, loss in enumerate(losses)
        for places in [[("eigenvector", one["axes"]["eigenvector"], column), ("z", one["axes"]["z"], row)]]
    ]


def table_of(records: Sequence[dict[str, Any]]) -> Table:
    """Make a row of each checkpoint: its loss, and how it rises to the ends of the axes and at most."""
    rows = []
    names = told_apart([Path(one["checkpoint"]) for one in records])
    for name, one in zip(names, records, strict=True):
        losses = np.array(one["losses"], dtype=float) - one["loss"]
        middle = len(losses) // 2
        ends = [losses[middle, -1], losses[middle, 0], losses[-1, middle], losses[0, middle]]
        rises = [None if np.isnan(end) else float(end) for end in ends]
        eigenvalue = marked(show(one["lambda_max_live"]), converged=one["converged"])
        rows.append([name, eigenvalue, one["loss"], *rises, float(np.nanmax(losses)), float(np.nanmin(losses))])
    first = records[0]
    bits = max(first["axes"]["z"]["flips"])
    title = (
        f"L(s + av + bz) - L(s), axes to {bits} flipped bits of {first['entries']} ({bits / first['entries']:.2%}); "
    )
    title += f"BatchNorm: {first['batch_norm']}; {first['adversary']}"
    columns = ["checkpoint", "live λ_max", "L(s)", "+v", "-v", "+z", "-z", "highest", "lowest"]
    return make_table(title, columns, rows, gives_way=["lowest", "-z", "-v"], notes=(NOT_CONVERGED,))
