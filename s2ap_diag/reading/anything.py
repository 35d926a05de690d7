"""Open anything: a checkpoint, masks, an evaluation, a table, settings, a run, or a folder of any of them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.record import load_json
from s2ap_core.presets.read import parse_file
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.evaluation import Evaluation, load_evaluation
from s2ap_diag.reading.files import Kind, expand
from s2ap_diag.reading.masks import MaskFile
from s2ap_diag.reading.read import read
from s2ap_diag.reading.results import Run, collect, open_run, run_folders

Loaded = Checkpoint | MaskFile | Run | Evaluation | Config | pd.DataFrame
"""What one path is; a folder is a list of them, a JSON file what it holds."""


def load(
    path: str | os.PathLike[str],
    *,
    network: str | None = None,
    dataset: str | None = None,
    keep: float | None = None,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Open anything of ours, and checkpoints and masks of other tools.

    Args:
        path: a file or a folder.
        network: this, ``dataset``, ``keep`` and ``width`` are what another tool's file does not say, as for
            :func:`s2ap_diag.reading.read.read`.
        device: where a model is put.

    Returns:
        Of a checkpoint a ``Checkpoint`` with ``model``, an ``nn.Module`` in eval mode, and of masks a ``MaskFile`` with
        ``masks``, packed (``masks.unpack()`` gives boolean arrays), both with a ``header``; of ``evals/STAGE.npz`` an
        ``Evaluation``; of a CSV a frame; of a JSON what it holds; of a TOML file the ``Config``; of a run's folder a
        ``Run`` (``results``, ``metrics``, ``stability``, ``sharpness``). Of a folder of runs, checkpoints or masks a
        list, in the order of their names and epochs.

    Raises:
        InputError: if the file is missing or damaged, does not say what it must, or does not fit its network; if the
            run is not finished, or the folder holds nothing to open.
    """
    path = Path(path)
    known = {"network": network, "dataset": dataset, "keep": keep, "width": width}
    if os.path.isdir(path):  # pathlib's raises for names that no file can have
        return _folder(path, known, device)
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return parse_file(path)
    if suffix == ".json":
        return _json(path)
    if suffix == ".csv":
        try:
            return pd.read_csv(path)
        except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
            raise InputError(f"{path}: missing, or not a CSV ({error}); give one of a run") from error
    return load_evaluation(path) if _is_evaluation(path) else _opened(path, known, device)


def _json(path: Path) -> Any:
    remedy = "give a JSON file of a run, or of a command's --json"
    try:
        return load_json(path, list, remedy)
    except InputError:
        return load_json(path, dict, remedy)


def _is_evaluation(path: Path) -> bool:
    try:
        return path.suffix == ".npz" and "about" in np.load(path).files
    except (OSError, ValueError):  # missing, or no such archive: the reader of masks says so
        return False


def _opened(path: Path, known: dict[str, Any], device: torch.device | str) -> Checkpoint | MaskFile:
    content = read(path, **known)
    return content.as_masks() if content.kind == "masks" else content.as_checkpoint(device)


def _folder(path: Path, known: dict[str, Any], device: torch.device | str) -> Any:
    if (path / "config.toml").is_file():
        return open_run(path)
    if next(run_folders(path), None) is not None:
        runs, skipped = collect(path)
        if not runs:
            raise InputError(f"{path}: holds no finished run: {skipped[0].reason}")
        return runs
    kind: Kind = "masks" if path.name == "masks" else "checkpoint"
    return [_opened(file, known, device) for file in expand([path], kind)]
