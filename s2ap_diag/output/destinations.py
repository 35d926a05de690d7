"""Where a command's results go: the terminal, JSON, CSV, a picture; checked before anything is measured."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from s2ap_core.errors import InputError
from s2ap_core.files.atomic import check_place, write_file
from s2ap_core.files.code import is_code
from s2ap_diag.output.tables import Table, show_note, show_table, to_csv
from s2ap_diag.reading.files import FOLDERS, expand

PICTURES = (".png", ".pdf", ".svg")
"""Endings of a picture's name."""


IMAGES = (".jpeg", ".jpg", ".png")
"""Endings of the images of a folder that is a data set."""


ROOM = 1 << 20
"""Bytes that have to be free for what a command writes."""


OWN_FILES = (
    "config.toml",
    "environment.json",
    "fingerprint.json",
    "metrics.csv",
    "timing.csv",
    "results.json",
    "run.log",
)
OWN_FOLDERS = {"ckpt": ".safetensors", "masks": ".safetensors", "evals": ".npz", "code": "", "tensorboard": ""}
"""What a run's folder holds that no other command may write over, folders with the ending of their files."""


@dataclass(frozen=True)
class Output:
    """Where results go; ``plot`` is for the command to draw, ``wide`` shows all columns of a table."""

    json: str | None
    csv: Path | None
    plot: Path | None
    quiet: bool
    wide: bool = False

    def emit(
        self,
        records: Sequence[dict[str, Any]],
        *tables: Table,
        rows: Sequence[dict[str, Any]] | None = None,
        above: Iterable[str] = (),
        notes: Iterable[str] = (),
    ) -> None:
        """Show tables and write the records; with JSON on standard output, nothing else goes there.

        Args:
            rows: what the CSV holds, where records are nested.
            above, notes: lines above and below the tables.
        """
        if self.csv is not None:
            import pandas as pd  # takes longer than all of a command that needs no torch

            write_file(self.csv, to_csv(pd.json_normalize(list(records if rows is None else rows))))
        if self.json is not None:
            text = as_json(records)
            if self.json == "-":
                click.echo(text, nl=False)
                return
            write_file(Path(self.json), text)
        for line in () if self.quiet else above:
            show_note(line)
        for table in tables:
            show_table(table, self.quiet, wide=self.wide)
        for note in () if self.quiet else notes:
            show_note(note)


def as_json(records: Sequence[dict[str, Any]]) -> str:
    """Write records as what ``--json`` writes."""
    return json.dumps(list(records), indent=2, default=str) + "\n"


def check_destinations(
    outputs: Mapping[str, Path], inputs: Sequence[Path], pictures: Sequence[str] = (), named: Iterable[str] = ()
) -> None:
    """Check the files that a command is to write, by the options that name them, before it begins.

    Args:
        inputs: files and folders that it reads.
        pictures: the options that name pictures.
        named: what other options name: parts that may be code, or images of the user's own.

    Raises:
        InputError: naming the option, if a name is no place for a file or has no picture's ending; if the folder cannot
            be written to or is full; if it is an input, a file of a run, or what another option names.
    """
    places: dict[str, str] = {}
    parts = [*map(_part, named)]
    for option, path in outputs.items():
        if str(path) == "-":
            raise InputError(f"{option} -: --json - alone writes to standard output; name a file")
        if option in pictures and path.suffix.lower() not in PICTURES:
            raise InputError(f"{option} {path}: end the name in .png, .pdf or .svg")
        try:
            if check_place(path):
                continue
            _check_folder(path)
        except OSError as error:
            raise InputError(f"{option} {path}: cannot be written ({error.strerror}); name another file") from error
        except InputError as error:
            raise InputError(f"{option} {error}") from error
        if any(_reads(given, path) for given in inputs) or any(_holds(part, path) for part in parts):
            raise InputError(f"{option} {path}: it is read by this command; name another file")
        if _of_a_run(path):
            raise InputError(f"{option} {path}: it is a file of the run there; name another file")
        other = places.setdefault(os.path.realpath(path), option)
        if other != option:
            raise InputError(f"{option} {path}: {other} writes it; name another file")


def _check_folder(path: Path) -> None:
    """Raise InputError if no file of some size can be made there; folders that are missing will be made."""
    folder = Path(os.path.abspath(path)).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path}: {folder} is no folder; name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: {folder} cannot be written to; choose another folder")
    if shutil.disk_usage(folder).free < ROOM:
        raise InputError(f"{path}: the disk is full; free space or choose another folder")


def _reads(given: Path, path: Path) -> bool:
    """Return whether a file is one of those that a path to a file, folder or run stands for."""
    if not path.exists():
        return False
    files: list[Path] = []
    for kind in FOLDERS:
        with suppress(InputError):  # whatever is wrong with an input, the command says
            files += expand([given], kind)
    return any(os.path.samefile(file, path) for file in files)


def _part(name: str) -> Path:
    """Return the file or folder that the name of a part stands for; it need not be there."""
    if not is_code(name):
        return Path(name)
    where = name.rpartition(":")[0]
    return Path(where if where.endswith(".py") else f"{where.replace('.', '/')}.py")


def _holds(part: Path, path: Path) -> bool:
    """Return whether a file is that of a part, or an image in the folders of classes of one."""
    real, own = os.path.realpath(path), os.path.realpath(part)
    if not os.path.exists(real):
        return False
    deep = real.removeprefix(f"{own.rstrip('/')}/")
    return real == own or (deep != real and "/" in deep and Path(real).suffix.lower() in IMAGES)


def _of_a_run(path: Path) -> bool:
    """Return whether it is a file that a run has written in its folder, or one in the run's folders."""
    real = Path(os.path.realpath(path))
    if not real.exists():
        return False
    if (real.parent / "config.toml").is_file():
        return real.name in OWN_FILES
    own = real.name.endswith(OWN_FOLDERS.get(real.parent.name, "/"))
    return own and (real.parent.parent / "config.toml").is_file()
