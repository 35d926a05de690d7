"""What a run must find unchanged when it goes on: its images, its network and the code that makes it."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from s2ap_core.config import Config
from s2ap_core.data import Dataset, Split
from s2ap_core.distributed.group import wait
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.runs.checkpoints import build_network, describe
from s2ap_core.runs.directory import FORMAT, RunDirectory

FILE = "fingerprint.json"


Changes = dict[str, tuple[Any, Any]]
"""By dotted key: what it was, what it is; None for nothing."""


SHOWN = 3
"""Differences that a message names."""


def identity(config: Config, data: Dataset) -> dict[str, Any]:
    """Number and checksum of each split's images, shape of each parameter, version and checksum of the code."""
    with torch.device("meta"):
        network = build_network(describe(config, data, "pretrain", 0)["network"])
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {
        "code": {"version": version("s2ap-diag"), "format": FORMAT, "source": source_checksum()},
        "data": {split: _split(data, split) for split in splits},
        "network": {name: list(parameter.shape) for name, parameter in network.named_parameters()},
    }


def _split(data: Dataset, split: Split) -> dict[str, Any] | None:
    try:
        return {"images": data.count(split), "checksum": data.checksum(split)}
    except InputError:  # not every run needs all splits; one that does says itself what is wrong
        return None


@cache
def source_checksum() -> str:
    """SHA-256, 16 digits of it, of the pruner's source files: edits between two releases count, too."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def check_unchanged(run: RunDirectory, data: Dataset) -> None:
    """Note what a new run depends on; of one that goes on, see that it is the same.

    Raises:
        InputError: naming what differs, before and now.
    """
    changes = changed(run, data)
    if changes is None:
        _note(run, identity(run.config, data))
    elif changes:
        raise InputError(refusal(run.path, changes))


def accept_changes(run: RunDirectory, data: Dataset) -> None:
    """Let a run go on with what changed, which ``environment.json`` then says."""
    changes = changed(run, data)
    if changes:
        run.record_forced(changes)
        _note(run, identity(run.config, data))
    wait()  # the other processes read what the first has noted


def changed(run: RunDirectory, data: Dataset) -> Changes | None:
    """What differs from what the run began with; None if it has not begun.

    Raises:
        InputError: if its file is damaged.
    """
    path = run.path / FILE
    if not path.exists():
        return None
    try:
        before = json.loads(path.read_text())
        return differences(before, identity(run.config, data))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged; remove it if nothing has changed since the run began") from error


def _note(run: RunDirectory, found: Mapping[str, Any]) -> None:
    write_file(run.path / FILE, json.dumps(found, indent=2) + "\n")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """The entries of nested settings that differ, by dotted key, in their order."""
    old, new = flat(before), flat(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def refusal(run: Path, changes: Changes) -> str:
    """Why a run is not gone on with, in one line."""
    shown = [f"{key} = {old}, now {new}" for key, (old, new) in list(changes.items())[:SHOWN]]
    if len(changes) > SHOWN:
        shown.append(f"{len(changes) - SHOWN} more")
    return f"{run}: began with {'; '.join(shown)}; use another --out, drop the change, or --force to go on all the same"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
