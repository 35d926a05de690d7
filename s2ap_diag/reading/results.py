"""The runs that lie in a folder, as figures and reports read them."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.files.kinds import check_input
from s2ap_core.files.record import load_json
from s2ap_core.runs import course
from s2ap_core.runs.directory import BRING_BACK, METRICS, TIMING, RunDirectory
from s2ap_core.training.evaluation import Evaluation, load_evaluation
from s2ap_diag.reading.read import read
from s2ap_diag.stability import trajectory

if TYPE_CHECKING:
    from s2ap_diag.sharpness import Sharpness

SHARED = "shared"
"""Folder of a sweep's runs that end before the last stage, since others go on from them."""


SHARPNESS = "sharpness.json"
"""What ``s2ap-diag sharpness RUN/ckpt/prune-best.safetensors --json`` gave, beside the run's own results."""


@dataclass(frozen=True)
class Skipped:
    """A folder that cannot be used as a run, and why, in words that say what to do."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Run:
    """A finished run. Everything but config, results and environment is read when it is asked for.

    Attributes:
        results: what ``results.json`` holds: for each stage S its ``epochs``, under ``evaluate-S`` the
            summary of its evaluation, accuracies in [0, 1].
    """

    path: Path
    config: Config
    results: dict[str, Any]
    environment: dict[str, Any]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """``metrics.csv``: stage, epoch, iteration (NaN: of the whole epoch), metric, value.

        Raises:
            InputError: if it is missing or damaged.
        """
        return _read_csv(self.path / "metrics.csv", METRICS)

    @cached_property
    def timing(self) -> pd.DataFrame:
        """``timing.csv``: stage, epoch (NaN for an evaluation), seconds; errors as for ``metrics``."""
        return _read_csv(self.path / "timing.csv", TIMING)

    def tracked(self, metric: str, stage: str = "prune") -> pd.Series:
        """Read a metric by epoch, of the whole epoch; empty where it was not tracked. Errors as for ``metrics``."""
        values, rows = self._of_epochs
        return values.iloc[rows.get((stage, metric), [])]

    @cached_property
    def _of_epochs(self) -> tuple[pd.Series, dict[tuple[str, str], np.ndarray]]:
        """The values of whole epochs, and the rows of each stage and metric: told apart once, for dozens of curves."""
        whole = self.metrics[self.metrics["iteration"].isna()]
        return whole.set_index("epoch")["value"], whole.groupby(["stage", "metric"], sort=False).indices

    def curve(self, metric: str, stage: str = "prune") -> dict[int, float]:
        """Read a metric by epoch as :meth:`tracked` does, finite values only.

        Raises:
            InputError: as for ``metrics``, or if an epoch is not a number.
        """
        if not pd.api.types.is_numeric_dtype(self.metrics["epoch"]):
            raise InputError(f"{self.path / 'metrics.csv'}: an epoch is not a number; {BRING_BACK}")
        tracked = self.tracked(metric, stage)
        return {int(epoch): float(v) for epoch, v in tracked.items() if math.isfinite(epoch) and math.isfinite(v)}

    @cached_property
    def stability(self) -> pd.Series:
        """h of each epoch's mask against the first mask (Eq. 13), by epoch from 1.

        Raises:
            InputError: if a mask is missing or damaged.
        """
        run, epochs = RunDirectory(self.path, self.config), course.epochs(self.config, "prune")
        saved = [read(run.masks(epoch)).as_masks().masks for epoch in range(epochs.stop)]
        distances = [distance.h for distance in trajectory(saved)]
        return pd.Series(distances, index=pd.RangeIndex(1, len(distances) + 1, name="epoch"), dtype=float)

    def evaluation(self, stage: str) -> Evaluation | None:
        """Read the correctness image by image, None where the config asks for no evaluation of this stage.

        Raises:
            InputError: if the file is missing or damaged.
        """
        if stage not in self.config.evaluation.stages:
            return None
        return load_evaluation(self.path / "evals" / f"{stage}.npz")

    @cached_property
    def sharpness(self) -> dict[str, Any] | None:
        """The record of the selected scores' sharpness, None where it was not measured.

        Raises:
            InputError: if the file is damaged.
        """
        file = self.path / SHARPNESS
        if not file.is_file():
            return None
        records = load_json(file, list, "measure it again")
        if len(records) != 1 or not isinstance(records[0], dict):
            raise InputError(f"{file}: not one record of `s2ap-diag sharpness --json`; measure it again")
        return records[0]


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], record: Any, file: Path, remedy: str) -> Model:
    """Read a record of a file as a model.

    Raises:
        InputError: naming the file, the first entry that does not fit, and the remedy.
    """
    try:
        return model.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{file}: {key}: {first['msg']}; {remedy}") from error


def save_sharpness(run: Path, sharpness: "Sharpness") -> None:
    """Write the sharpness of a run's selected scores beside its results, where :attr:`Run.sharpness` reads it."""
    record = sharpness.record() | {"checkpoint": sharpness.checkpoint.path.relative_to(run).as_posix()}
    write_file(run / SHARPNESS, json.dumps([record], indent=2) + "\n")


def collect(folder: Path) -> tuple[list[Run], list[Skipped]]:
    """Open the runs under a folder, itself included, in the order of their paths, and what was skipped.

    Skipped is what is half done, damaged, or of another format. Nothing is read of folders named ``shared``.

    Raises:
        InputError: if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that holds runs")
    runs, skipped = [], []
    for path in run_folders(folder):
        try:
            runs.append(open_run(path))
        except InputError as error:
            skipped.append(Skipped(path, str(error)))
    return runs, skipped


def open_run(path: Path, *, unfinished: bool = False) -> Run:
    """Open a finished run.

    Args:
        unfinished: open one that is half done, too.

    Raises:
        InputError: if it is half done, damaged, or of another format.
    """
    run = RunDirectory.open(path)
    environment = run.environment()
    results = run.results()
    missing = [entry for entry in course.expected(run.config) if entry not in results]
    if missing and not unfinished:
        raise InputError(f"{path}: half done, without {missing[0]}; go on with `s2ap-diag run --resume --out {path}`")
    return Run(path, run.config, results, environment)


def run_folders(folder: Path) -> Iterator[Path]:
    """Find the folders under one that hold runs, finished or not, in the order of their paths."""
    if (folder / "config.toml").is_file():
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and child.name != SHARED and not child.name.startswith("."):
            yield from run_folders(child)


def _read_csv(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    check_input(file)
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{file}: missing or damaged; {BRING_BACK}") from error
    if tuple(table.columns) != columns or not pd.api.types.is_numeric_dtype(table[columns[-1]]):
        raise InputError(f"{file}: its columns are not {', '.join(columns)}; {BRING_BACK}")
    return table
