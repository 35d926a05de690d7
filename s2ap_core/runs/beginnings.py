"""Runs that share their beginning: one run takes over what another has done.

The dense network is the same for all searches that start from it, Orig. and S2AP are the same until the
warm-up ends, and arms that differ in their finetuning alone share the search. A run that ended there
(:meth:`s2ap_core.training.stages.Stages.all` with ``until``) is copied, and goes on under another config. Nothing is
evaluated in a beginning, so it does not depend on how the runs are evaluated.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.runs.checkpoints import describe_minimizer
from s2ap_core.runs.course import Until, beginning
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import note_config


def continue_from(source: Path, path: Path, config: Config, until: Until, device: str) -> RunDirectory:
    """Begin a new run at ``path`` that takes over what ``source`` has done, and goes on under ``config``.

    Files that are never changed in place are linked where the file system can, else copied. The folder
    appears whole or not at all.

    Raises:
        InputError: if ``path`` exists, or the configs differ in what the part up to ``until`` depends on.
    """
    ours, theirs = beginning(config, until), beginning(RunDirectory.open(source).config, until)
    if ours != theirs:
        key = next(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise InputError(f"{source}: began with {key} = {theirs.get(key)}, not {ours.get(key)}; start a run of its own")
    if path.exists():
        raise InputError(f"{path}: exists already; name another folder")
    unfinished = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        run = RunDirectory.create(unfinished, config, device)
        own = {"config.toml", "environment.json"}
        shutil.copytree(
            source,
            unfinished,
            dirs_exist_ok=True,
            copy_function=_link,
            ignore=lambda folder, names: {name for name in names if name in own or name.startswith(".")},
        )
        note_config(run)
        for file in unfinished.rglob("*.safetensors"):
            _relabel(file, config)
        unfinished.replace(path)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(f"{path}: cannot be written ({error}); free space or choose another folder") from error
    run.path = path
    return run


def _link(source: str, target: str) -> str:
    """Hard-link a file that is only ever replaced whole; copy one that grows in place, or where links do not work."""
    if source.endswith(".csv") or source.endswith(".log"):
        return shutil.copy2(source, target)
    try:
        os.link(source, target)
        return target
    except OSError:
        return shutil.copy2(source, target)


def _relabel(file: Path, config: Config) -> None:
    """Name the run's own minimizer in the files of the warm-up, which is the same for all minimizers."""
    tensors, header = load_tensors(file)
    own = describe_minimizer(config)
    if header.get("minimizer") is not None and {k: header[k] for k in ("minimizer", "gamma") if k in header} != own:
        relabelled: dict[str, Any] = {}  # in the order of the run's own headers, so that the bytes are the same
        for key, value in header.items():
            relabelled |= own if key == "minimizer" else {} if key == "gamma" else {key: value}
        save_tensors(file, tensors, relabelled)
