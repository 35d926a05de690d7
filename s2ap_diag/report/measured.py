"""What one run's files say of it, checked: evaluations, curves over epochs, spectra, distances, sharpness.

Whatever is missing, damaged, or not of the form that the run writes is an ``InputError`` that names the file.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

from s2ap_core.files.record import load_json
from s2ap_core.runs.directory import RESULTS_REMEDY
from s2ap_diag.reading.results import SHARPNESS, Run, validated

STAGES = {"pretrain": "dense", "prune": "raw mask", "finetune": "finetuned"}
"""The stages that are evaluated, and what each of them hands on."""

EXPORT = "export.json"
"""What ``s2ap-diag export RUN --json RUN/export.json`` gave."""

LIVE, ALL = "live channels", "all scores"
"""The spectra that lambda_max is read of, in words."""


class Evaluated(BaseModel):
    """The summary of an evaluation; accuracies and intervals in [0, 1]."""

    n: int
    attack: str
    norm: str
    eps: str
    clean_accuracy: float
    clean_interval: tuple[float, float]
    robust_accuracy: float | None = None
    robust_interval: tuple[float, float] | None = None


class Searched(BaseModel):
    """What the search says of itself."""

    selected_epoch: int | None = None


class Results(BaseModel):
    """``results.json``, each part None where the run has no such stage."""

    prune: Searched | None = None
    finetune: dict[str, Any] | None = None
    evaluated: Annotated[dict[str, Evaluated], Field(default_factory=dict)]


class Forward(BaseModel):
    """Median seconds of a forward pass."""

    exported: float


class Exported(BaseModel):
    """The record of ``s2ap-diag export --json``."""

    images: int = Field(ge=1)
    seconds: Forward


class Rise(BaseModel):
    """A loss difference."""

    mean: float


class SharpnessRecord(BaseModel):
    """The record of ``s2ap-diag sharpness --json``, loss differences by rho."""

    lambda_max: float
    lambda_max_live: float | None = None
    batch_norm: str
    loss_difference: dict[float, Rise] = {}


Curve = Mapping[int, float]
"""A metric by epoch."""

Curves = Mapping[str, Curve]
"""Curves by their names."""


def read_results(run: Run) -> Results:
    """Read the results of the search and of each evaluation."""
    file = run.path / "results.json"
    evaluated = {stage: run.results[f"evaluate-{stage}"] for stage in STAGES if f"evaluate-{stage}" in run.results}
    stages = {stage: run.results[stage] for stage in ("prune", "finetune") if stage in run.results}
    return validated(Results, {**stages, "evaluated": evaluated}, file, RESULTS_REMEDY)


def read_sharpness(run: Run) -> SharpnessRecord | None:
    """Read the sharpness of the selected scores, None where it was not measured."""
    record = run.sharpness
    return None if record is None else validated(SharpnessRecord, record, run.path / SHARPNESS, "measure it again")


def read_latency(run: Run) -> float | None:
    """Read the milliseconds for an image that were measured of the exported network, None where they were not."""
    file, remedy = run.path / EXPORT, f"measure it again: `s2ap-diag export --json {EXPORT}`"
    if not file.is_file():
        return None
    records = load_json(file, list, remedy)
    record = validated(Exported, records[0] if records else None, file, remedy)
    return 1e3 * record.seconds.exported / record.images


def read_losses(run: Run, results: Results) -> dict[str, dict[int, float]]:
    """Read the robust validation loss by epoch, of the search and after it, or of the dense network if that is all."""
    if results.prune:
        return {"search": run.curve("val_loss"), "finetuning": run.curve("val_loss", "finetune")}
    trained = (run.path / "metrics.csv").is_file()  # there is none where the dense network was given
    return {"pretraining": run.curve("val_loss", "pretrain") if trained else {}}


def read_spectra(run: Run, mode: str) -> dict[str, dict[int, float]]:
    """Read lambda_max by epoch in a mode of BatchNorm: of the live channels' scores, and as the paper defines it."""
    return {LIVE: run.curve(f"lambda_max_live_{mode}"), ALL: run.curve(f"lambda_max_{mode}")}
