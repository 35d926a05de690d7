"""Disks that fill up, folders that vanish, signals: exit status, one line that names the path, nothing lost."""

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest

import s2ap_core.training.stages
from s2ap_core.errors import InputError
from s2ap_diag.execution.signals import Terminated, resumable, terminable

LATEST = processes.EPOCHS + processes.BATCHES - 5
"""Units after which a fault comes before the end of the run on a busy machine too."""


class Patient:
    """A run that suffers faults one after the other and must end like one that did not."""

    def __init__(self, fault_table, kind: str, folder: Path | None = None, images: Path | None = None) -> None:
        processes.uninterrupted()  # imports what the copies of this process need
        self.table, self.kind, self.faults = fault_table, kind, 0
        self.folder = folder or processes.new_folder(images)
        self.config, self.run = self.folder / "tiny.toml", self.folder / "run"
        self.said = processes.new_folder() / "said"

    def start(self, prepare: Callable[[], None] = lambda: None) -> int:
        """Go on with the run in a process of its own."""
        self.said.write_text("")
        return processes.fork(processes.command(self.config, self.run), self.said, prepare)

    @contextmanager
    def paused(self, pid: int, units: int) -> Iterator[None]:
        """Let the process stand still after so many units."""
        assert units <= LATEST
        assert processes.wait_for(self.run, units, pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def stopped(self, pid: int, status: int, *words: str) -> None:
        """It stopped with this status and one line with these words, and what it left can be read."""
        self.faults += 1
        found = processes.wait(pid)
        lines = self.said.read_text().splitlines()
        good = found == status and len(lines) == 1 and all(word in lines[0] for word in words)
        good = good and processes.unreadable(self.run) == []
        if not good:
            self.table.add(self.kind, survived=False)
        assert good, (found, lines, processes.unreadable(self.run))

    def recovers(self, whole: Path | None = None) -> None:
        """It goes on, and ends as if nothing had happened."""
        processes.finish(self.config, self.run)
        lost = processes.differing(self.run, whole or processes.uninterrupted())
        for _ in range(self.faults):
            self.table.add(self.kind, survived=not lost)
        assert lost == []


def failing(number: int, after: int) -> Callable[[], None]:
    """Arm a process: each flush and rename from the one after the ``after``-th on fails with this error."""

    def arm() -> None:
        left = iter(range(after))

        def fails(function: Callable) -> Callable:
            def step(*arguments):
                if next(left, None) is None:
                    raise OSError(number, os.strerror(number))
                return function(*arguments)

            return step

        os.fsync, os.replace = fails(os.fsync), fails(os.replace)

    return arm


def test_writing_fails_at_any_step(fault_table):
    patient = Patient(fault_table, "write fails")
    for turn, after in enumerate((0, 1, 2, 3, 4, 6, 8, 9, 10, 13, 15, 18)):
        number = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)[turn % 4]
        patient.stopped(patient.start(failing(number, after)), 2, f"{patient.folder}", os.strerror(number))
    patient.recovers()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of this size on a folder; skips the test where only an administrator may do that."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk can be made by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def unforeseen() -> None:
    """Let a run begin on a disk that is too small, as if it had been filled since."""
    s2ap_core.training.stages.check_space = lambda *arguments: None


def test_the_disk_is_full(fault_table):
    patient = Patient(fault_table, "disk full")
    with small_disk(patient.folder, "4k"):
        patient.config.write_text(processes.CONFIG.format(root=processes.all_images()))
        for size in ("16k", "100k", "220k", "500k", "700k", "1100k"):
            subprocess.run(["mount", "-o", f"remount,size={size}", patient.folder], check=True)
            patient.stopped(patient.start(unforeseen), 2, f"{patient.folder}", "No space left on device")
        # Foreseen, it is not begun with.
        patient.stopped(patient.start(), 2, f"{patient.run}", "MB are free", "--keep-checkpoints")
        subprocess.run(["mount", "-o", "remount,size=20m", patient.folder], check=True)
        patient.recovers()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be made or removed, not even by root."""
    if os.geteuid():
        folder.chmod(0o555)
    elif not shutil.which("chattr") or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o755)
        else:
            subprocess.run(["chattr", "-i", folder], check=True)


@pytest.mark.parametrize("name", [".", "ckpt", "masks", "evals"])
def test_a_folder_is_read_only(fault_table, name):
    patient = Patient(fault_table, "read-only folder")
    pid = patient.start()
    # The last evaluation makes batches after the search has made masks.
    assert processes.wait_for(patient.run, 3 if name != "masks" else 5, pid)
    with read_only(patient.run / name):
        patient.stopped(pid, 2, f"{patient.run / name}", "cannot be written")
        if name == ".":
            patient.stopped(patient.start(), 2, f"{patient.run}", "cannot be written")
    patient.recovers()


def test_the_images_vanish(fault_table):
    images = processes.draw_images(processes.new_folder() / "images")
    patient = Patient(fault_table, "images vanish", images=images)
    whole = patient.run.with_name("whole")
    processes.finish(patient.config, whole)
    for units in (0, 4, 8, LATEST):
        pid = patient.start()
        with patient.paused(pid, units):
            away = images.rename(images.with_name("away"))
        patient.stopped(pid, 2, f"{images}")
        patient.stopped(patient.start(), 2, f"{images}")
        away.rename(images)
    patient.recovers(whole)


def test_the_run_directory_vanishes(fault_table):
    patient = Patient(fault_table, "run directory vanishes")
    for units in (1, 3, 6, 8, LATEST):
        pid = patient.start()
        with patient.paused(pid, units):
            away = patient.run.rename(patient.run.with_name("away"))
        patient.stopped(pid, 2, f"{patient.run}")
        assert not patient.run.exists()  # nothing came back without its past
        away.rename(patient.run)
    patient.recovers()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_at_random_moments(fault_table, number, status):
    rng, patient = random.Random(int(number)), Patient(fault_table, signal.Signals(number).name)
    for units in (1, 3, 5, 7, 8, LATEST):
        pid = patient.start()
        assert processes.wait_for(patient.run, max(units, processes.done(patient.run) + 1), pid)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, number)
        patient.stopped(pid, status, f"s2ap-diag run --resume --out {patient.run}")
        strays = [path for path in patient.run.rglob(".*") if path.is_file()]
        assert strays == []
    patient.recovers()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_itself_says_how_to_go_on(fault_table, number, status):
    patient = Patient(fault_table, signal.Signals(number).name)
    process = processes.spawn(processes.command(patient.config, patient.run), patient.said)
    assert processes.wait_for(patient.run, 4, process.pid)
    process.send_signal(number)
    assert process.wait(30) == status
    (line,) = patient.said.read_text().splitlines()
    assert f"s2ap-diag run --resume --out {patient.run}" in line
    patient.faults += 1
    patient.recovers()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_arrives_in_a_finalizer_is_not_lost(number, raised):
    class Short:
        def __del__(self) -> None:
            signal.raise_signal(number)  # what is raised here, Python drops

    def sleep() -> None:
        with terminable():
            Short()
            time.sleep(5)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(raised):
            sleep()
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_a_library_makes_an_error_of_is_still_a_signal(number, status):
    def read() -> None:
        with terminable(), resumable("again"):
            try:
                signal.raise_signal(number)
            except BaseException as error:
                raise InputError("a file is truncated") from error

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as leaving:
            read()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert leaving.value.code == status
