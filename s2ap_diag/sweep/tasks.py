"""How one task of a sweep runs, in a worker process or on a node of a cluster."""

import logging
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from s2ap_core.config.parts import held
from s2ap_core.data import Dataset
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import write_file
from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.execution.execute import execute, prepare
from s2ap_diag.reading.results import SHARPNESS, save_sharpness
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from s2ap_diag.sweep.grid import Measurement
from s2ap_diag.sweep.place import filesystem_of
from s2ap_diag.sweep.plan import Task

log = logging.getLogger(__name__)

DONE = ".done"
"""In a run's folder: it went as far as its task goes. Hidden, since a run that goes on from there is not done."""


@dataclass(frozen=True)
class Workplace:
    """Where the tasks of a sweep run.

    Attributes:
        root: the sweep's folder, or an fsspec URL of it such as ``s3://bucket/runs``.
        threads: of a task's tensor operations.
    """

    root: str
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a task ended; ``error`` is None if it is done, else what went wrong, in one line."""

    name: str
    seconds: float
    error: str | None = None


def log_file(name: str) -> str:
    """Name a task's log below the sweep's folder."""
    return f"logs/{name.replace('/', '-')}.log"


def is_done(task: Task, root: str) -> bool:
    """Return whether this task's run went as far as it should."""
    filesystem, path = filesystem_of(root)
    return bool(filesystem.exists(f"{path}/{task.name}/{DONE}"))


def run_task(task: Task, workplace: Workplace) -> Outcome:
    """Run a task from where it stopped. Errors go into its log and its outcome; none is raised."""
    torch.set_num_threads(workplace.threads)
    started = time.monotonic()
    with _folder_of(workplace.root, task) as folder, _logged(folder / log_file(task.name)) as log:
        log.info("begins: until %s on %s", task.until, workplace.device)
        try:
            _run(task, folder, workplace.device)
        except InputError as error:
            log.error("%s", error)
            return Outcome(task.name, time.monotonic() - started, str(error))
        except Exception as error:  # whatever it is, the other runs of a night go on
            log.error("%s", traceback.format_exc())
            return Outcome(task.name, time.monotonic() - started, f"{type(error).__name__}: {error}")
        log.info("done in %.1f s", time.monotonic() - started)
    return Outcome(task.name, time.monotonic() - started)


@held()
def _run(task: Task, folder: Path, device: str) -> None:
    path = folder / task.name
    if not path.exists() and task.after is not None and task.shared is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        continue_from(folder / task.after, path, task.config, task.shared, device)
    lock.release_foreign(path)  # of a node that died: the sweep alone gives out its tasks
    # A beginning may have been made under another run's settings: its name says that they agree up to its end.
    begun = task.until != "end" and RunDirectory.begun(path)
    data, config = prepare(task.config), None if begun else task.config
    run = execute(config, path, device=device, quiet=True, resume=True, data=data, until=task.until)
    if task.until == "end" and task.sharpness is not None and run.checkpoint("prune-best").exists():
        log.info("%s: sharpness of the selected scores", task.name)
        _measure(run, data, task.sharpness, device)
    write_file(path / DONE, task.until)


def _measure(run: RunDirectory, data: Dataset, asked: Measurement, device: str) -> None:
    if (run.path / SHARPNESS).exists():
        return
    settings = SharpnessSettings(**asked.model_dump(), seed=run.config.seed)
    checkpoint = load_checkpoint(run.checkpoint("prune-best"), device)
    save_sharpness(run.path, measure_sharpness(checkpoint, data.to(device), run.config.objective, settings))


@contextmanager
def _folder_of(root: str, task: Task) -> Iterator[Path]:
    """Give the sweep's folder; for a URL, a local copy of what the task needs, uploaded again when it ends."""
    filesystem, remote = filesystem_of(root)
    if "file" in filesystem.protocol:
        yield Path(remote)
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary)
        for name in (task.name, task.after):
            if name is not None and filesystem.exists(f"{remote}/{name}"):
                filesystem.get(f"{remote}/{name}/", f"{local / name}/", recursive=True)
        try:
            yield local
        finally:
            if task.after is not None:
                shutil.rmtree(local / task.after, ignore_errors=True)
            mark = local / task.name / DONE
            done = mark.read_bytes() if mark.exists() else None
            mark.unlink(missing_ok=True)
            filesystem.put(f"{local}/", f"{remote}/", recursive=True)
            if done is not None:  # last: an upload that is cut off is not done
                filesystem.pipe_file(f"{remote}/{task.name}/{DONE}", done)


@contextmanager
def _logged(file: Path) -> Iterator[logging.Logger]:
    """Log to this file too while the block runs, warnings included."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield logging.getLogger("s2ap_diag.sweep")
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
