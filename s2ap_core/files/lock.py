"""One process at a time on a run directory."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil

from s2ap_core.errors import InputError
from s2ap_core.files.writer import writes_files

NAME = ".lock"


SAME_START = 5.0
"""Seconds by which two readings of a process's start may differ: it is derived from the clock, which is set."""


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems that have no locks."""


_held: ContextVar[frozenset[tuple[int, Path]]] = ContextVar("held", default=frozenset())


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Lock a run directory against other processes within the block, and make it if it is missing.

    ``RUN/.lock`` names the owner: process id, its start (seconds since 1970) and host. An owner on this host whose
    process has ended is replaced. Nested blocks of the same thread change nothing. Where several processes work on a
    run, the first is the owner.

    Raises:
        InputError: naming the process that holds the directory, or the file if it cannot be written.
    """
    path = run.resolve() / NAME
    if not writes_files() or (os.getpid(), path) in _held.get():
        yield
        return
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(path)
    except OSError as error:
        _give_back(path, made)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    token = _held.set(_held.get() | {(os.getpid(), path)})
    try:
        yield
    finally:
        _held.reset(token)
        _give_back(path, made)


def in_use(run: Path) -> bool:
    """Return whether a process holds the directory, as far as can be known from here."""
    path = run / NAME
    if not path.exists():
        return False
    with _guarded(path) as file:
        owner = _read(file)
    if owner is None:
        return False
    return owner.get("host") != socket.gethostname() or _lives(int(owner["pid"]), owner.get("started"))


def release_foreign(run: Path) -> None:
    """Remove the lock of a process on another host that the caller knows to have ended."""
    path = run / NAME
    if path.exists():
        with _guarded(path) as file:
            owner = _read(file)
            if owner is not None and owner.get("host") != socket.gethostname():
                path.unlink()


def check_held(path: Path) -> Path | None:
    """Find the run directory in which a file lies, if this process holds one; it must not be gone or another's by now.

    Raises:
        InputError: naming the directory.
    """
    for pid, held in _held.get():
        if pid == os.getpid() and held.parent in path.resolve().parents:
            if not _is_ours(held):
                raise InputError(
                    f"{held.parent}: the run directory or its {NAME} has vanished; bring it back and --resume"
                )
            return held.parent
    return None


def make_folder_of(path: Path) -> None:
    """Make the folder of a file, but never a directory that this process holds.

    A run directory that was removed would come back with this file alone, and be taken for a run.

    Raises:
        InputError: naming the directory that this process held.
        OSError: if the folder cannot be made.
    """
    folder, run = path.resolve().parent, check_held(path)
    if run is None:
        folder.mkdir(parents=True, exist_ok=True)
    elif folder != run:
        folder.mkdir(exist_ok=True)  # without parents: the run may vanish at this very moment


def _is_ours(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text())
        return bool((owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname()))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take(path: Path) -> None:
    with _guarded(path) as file:
        owner = _read(file)
        if owner is not None:
            _refuse_living(path, owner)
        me = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(me).encode(), 0)


def _give_back(path: Path, made: bool) -> None:
    """Remove the file unless it is another's, and a folder that was made for it where no run began in it."""
    with suppress(OSError):
        if not path.exists():
            return
        with _guarded(path) as file:
            owner = _read(file)
            if owner is None or (owner["pid"], owner.get("host")) == (os.getpid(), socket.gethostname()):
                path.unlink()
        if made:
            path.parent.rmdir()  # fails, as it should, if it holds anything


@contextmanager
def _guarded(path: Path) -> Iterator[int]:
    """Open the lock file for one process at a time: of two that want the lock, the second sees the first.

    The kernel's lock is held for this moment alone: forked workers would inherit it, and may outlive this process.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with _passing_over(*NO_LOCKS):
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is(file, path):  # else its owner removed it while we waited
                yield file
                return
        finally:
            os.close(file)


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _passing_over(*numbers: int) -> Iterator[None]:
    """Go on after an OSError of one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _read(file: int) -> dict[str, Any] | None:
    """Read the owner; None where the file names none, as a process leaves it that dies while writing."""
    try:
        owner = json.loads(os.pread(file, 4096, 0))
        return owner if isinstance(owner, dict) and "pid" in owner else None
    except ValueError:
        return None


def _refuse_living(path: Path, owner: dict[str, Any]) -> None:
    who = f"process {owner['pid']} of {owner.get('host')}"
    if owner.get("host") != socket.gethostname():
        raise InputError(f"{path.parent}: in use by {who}; if that process is gone, remove {path}")
    if _lives(int(owner["pid"]), owner.get("started")):
        raise InputError(f"{path.parent}: in use by {who}; wait for it or stop it")


def _lives(pid: int, started: float | None) -> bool:
    """Return whether that very process runs: its number may have gone to another one since."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < SAME_START
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
