"""What a user adds about checkpoints of other tools, whose files do not say it."""

import os
from dataclasses import dataclass
from pathlib import Path

from s2ap_core.config import DataSettings
from s2ap_core.data import Dataset, load
from s2ap_core.errors import InputError
from s2ap_core.files.code import is_code, name_by_user
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import CODE
from s2ap_diag.reading.read import read


@dataclass(frozen=True)
class Source:
    """What a user says of checkpoints; None where the files say it."""

    keep: float | None = None
    network: str | None = None
    dataset: str | None = None
    root: Path | None = None

    def open(self, path: Path, device: str = "cpu") -> Checkpoint:
        """Open a checkpoint, ours or another tool's.

        Raises:
            InputError: if it cannot be used, or if neither the file nor an option says what is needed.
        """
        content = read(path, network=self.network, dataset=self.dataset, keep=self.keep)
        return content.as_checkpoint(device)

    def data(self, checkpoint: Checkpoint) -> Dataset:
        """Load the data that a checkpoint was made with: the option's, or its file's and its run's own.

        Raises:
            InputError: if neither says which, or the files cannot be used.
        """
        run = checkpoint.path.parent.parent
        settings = RunDirectory.open(run).config.data if (run / "config.toml").is_file() else DataSettings()
        name_by_user(self.dataset)
        name = self.dataset or checkpoint.header.get("dataset")
        if name is None:
            raise InputError(f"{checkpoint.path}: does not say its data set; give --dataset")
        if not _same(name, settings.name, run):
            return load(name, self.root)
        return load(name, self.root or settings.root, **settings.options)


def _same(name: str, of_run: str, run: Path) -> bool:
    """Return whether two names of data sets stand for one: by any path to it, or to the run's copy of its code."""
    if name == of_run or is_code(name) != is_code(of_run):
        return name == of_run
    (file, _, factory), (own, _, own_factory) = (
        n.rpartition(":") if is_code(n) else (n, "", "") for n in (name, of_run)
    )
    path = Path(os.path.realpath(file))
    copied = path.parent == Path(os.path.realpath(run / CODE)) and path.name.rpartition("-")[0] == Path(own).stem
    return factory == own_factory and (copied or str(path) == os.path.realpath(own))
