"""The run directory: files that one stage writes and the next reads, and that a crash cannot spoil."""

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from s2ap_core import __version__
from s2ap_core.config import Config, parse_config
from s2ap_core.distributed.group import world
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import leftovers, write_file
from s2ap_core.files.kinds import check_input
from s2ap_core.files.record import load_json, parse_toml
from s2ap_core.files.writer import writes_files
from s2ap_core.methods import METHODS
from s2ap_core.runs.course import traits

FORMAT = 1
"""Version of the run directory's files; raised when a change makes older directories unreadable."""


METRICS = ("stage", "epoch", "iteration", "metric", "value")


TIMING = ("stage", "epoch", "seconds")


BRING_BACK = "bring it back from a copy, as --resume does not make it again, or begin anew in another folder"
"""What to do about a file that holds what was measured in training."""


RESULTS_REMEDY = "remove it and run again with --resume"
"""What to do about ``results.json``, which is made of other files."""


UNBEGUN = frozenset({lock.NAME, "environment.json"})
"""All that a folder may hold, leftovers aside, before ``config.toml`` is written, with which a run begins."""


class RunDirectory:
    """One run on disk, as laid out in the README: config, environment, metrics, checkpoints, results."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    @classmethod
    def create(cls, path: Path, config: Config, device: str) -> "RunDirectory":
        """Begin a run in a new folder.

        Raises:
            InputError: if the folder holds anything but what a process that was killed here left behind.
        """
        if path.exists() and (not path.is_dir() or _settled(path) - UNBEGUN):
            raise InputError(f"{path}: exists already; give --resume to continue it, or another --out")
        write_file(
            path / "environment.json", json.dumps(environment(config.seed, device) | _of_method(config), indent=2)
        )
        write_file(path / "config.toml", config.to_toml())
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Open an existing run.

        Raises:
            InputError: if the folder is missing or holds no run.
        """
        file = path / "config.toml"
        if not file.is_file():
            raise InputError(f"{path}: not a run directory (no config.toml)")
        try:
            config = parse_config(parse_toml(file.read_text(encoding="utf-8")), str(file))
        except ValueError as error:  # of the decoder, of the text's encoding, of what it holds
            raise InputError(f"{file}: not valid TOML: {error}") from error
        run = cls(path, config)
        if not METHODS.knows(config.method.name) and isinstance(noted := run.environment().get("method"), dict):
            vars(config.method)["noted"] = noted
        return run

    @staticmethod
    def begun(path: Path) -> bool:
        """Return whether there is a run in this folder that can be opened."""
        return (path / "config.toml").is_file()

    def checkpoint(self, name: str) -> Path:
        """Return where the checkpoint of this name lies, such as ``prune-best``."""
        return self.path / "ckpt" / f"{name}.safetensors"

    def result(self, stage: str) -> Path:
        """Return where the checkpoint lies that a stage hands on."""
        return self.checkpoint("pretrain" if stage == "pretrain" else f"{stage}-best")

    def masks(self, epoch: int) -> Path:
        """Return where the mask after this epoch of the search lies; 0 is before it."""
        return self.path / "masks" / f"epoch-{epoch:03d}.safetensors"

    def state(self, stage: str) -> Path:
        """Return where a stage's state lies, from which it goes on."""
        return self.checkpoint(f"state-{stage}")

    def append(self, file: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> int:
        """Append rows to a CSV of the run, with its heading if it is new.

        Returns:
            The file's length in bytes afterwards; 0 where another process writes it.
        """
        if not writes_files():
            return 0
        path = self.path / file
        lock.check_held(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        before = path.stat().st_size if path.exists() else 0
        if before == 0:
            writer.writerow(columns)
        writer.writerows(rows)
        try:
            with path.open("ab") as stream:
                stream.write(text.getvalue().encode())
                stream.flush()
                os.fsync(stream.fileno())
                return stream.tell()
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, before)  # half a row would spoil the next one
            raise InputError(f"{path}: cannot be written ({error.strerror}); free space and --resume") from error

    def rows(self, file: str) -> list[list[str]]:
        """Read the rows of a CSV of the run, its heading first, without one that a killed process left half written.

        Raises:
            InputError: if it is damaged.
        """
        path = self.path / file
        check_input(path)
        try:
            text = path.read_bytes().decode() if path.exists() else ""
            return list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True))
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path}: damaged ({error}); {BRING_BACK}") from error

    def drop_rows(self, file: str, stage: str, after: int) -> None:
        """Drop from a CSV what a stage wrote after an epoch, which it is about to write again; nothing of other stages.

        Raises:
            InputError: if it is damaged, or cannot be written.
        """
        path = self.path / file
        if not writes_files() or not path.exists():
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        try:
            writer.writerows(row for row in self.rows(file) if row[0] != stage or int(row[1]) <= after)
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: damaged ({error}); {BRING_BACK}") from error
        if text.getvalue().encode() != path.read_bytes():
            write_file(path, text.getvalue())

    def remove_leftovers(self) -> None:
        """Remove the temporary files that a killed process left."""
        if writes_files():
            for leftover in [*leftovers(self.path.rglob(".*.tmp"))]:
                leftover.unlink(missing_ok=True)

    def results(self) -> dict[str, Any]:
        """Read ``results.json``, empty before the first stage has ended.

        Raises:
            InputError: if it is damaged.
        """
        path = self.path / "results.json"
        return load_json(path, dict, RESULTS_REMEDY) if path.exists() else {}

    def environment(self) -> dict[str, Any]:
        """Read ``environment.json``.

        Raises:
            InputError: if it is missing or damaged, or says that the run's files are of another format.
        """
        file = self.path / "environment.json"
        said = load_json(file, dict, "restore it, or start anew in another folder")
        if said.get("format") != FORMAT:
            raise InputError(f"{file}: of format {said.get('format')}, this version reads {FORMAT}; run it anew")
        return said

    def record_forced(self, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """Note in ``environment.json`` the changes, by key (before, now), despite which a run was told to go on."""
        known = self.environment()
        when = datetime.now(UTC).isoformat(timespec="seconds")
        forced = {"at": when, "changed": {key: {"was": old, "is": new} for key, (old, new) in changes.items()}}
        known["forced"] = [*known.get("forced", ()), forced]
        known = {key: value for key, value in known.items() if key != "method"} | _of_method(self.config)
        write_file(self.path / "environment.json", json.dumps(known, indent=2, default=str))

    def add_results(self, **entries: Any) -> None:
        """Merge entries into ``results.json``."""
        write_file(self.path / "results.json", json.dumps({**self.results(), **entries}, indent=2))


def _of_method(config: Config) -> dict[str, Any]:
    """Make the entry of ``environment.json`` that stands for a method that is not one of ours, where it is none."""
    noted = traits(config)
    return {"method": noted} if noted else {}


def _settled(folder: Path) -> set[str]:
    """Name what is in a folder besides what a killed process left half written."""
    return {path.name for path in folder.iterdir()} - {path.name for path in leftovers(folder.iterdir())}


def environment(seed: int, device: str) -> dict[str, Any]:
    """Collect what a run runs on: versions, device, the code's git commit, the seed."""
    packages = ("torch", "numpy", "pyautoattack")
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "s2ap-diag": __version__,
        **{package: version(package) for package in packages},
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "processes": world(),
        "commit": commit_of(Path(__file__)),
        "seed": seed,
    }


def commit_of(source: Path) -> str | None:
    """Ask git for the commit that a source file is checked out from.

    Returns:
        None where git is not installed or does not know the file: a package that lies in the environment of some
        other repository is no part of that repository's commit.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments], cwd=source.parent, env=own, capture_output=True, text=True, check=False
        )

    # As in a hook of git, variables may name another repository.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    try:
        if git("ls-files", "--error-unmatch", source.name).returncode:
            return None
        return git("rev-parse", "HEAD").stdout.strip() or None
    except OSError:
        return None
