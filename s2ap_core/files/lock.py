"""One process at a time on a run directory."""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import psutil

from s2ap_core.errors import InputError
from s2ap_core.files.writer import writes_files

NAME = ".lock"


SAME_START = 5.0
"""Seconds by which two readings of a process's start may differ: it is derived from the clock, which is set."""


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems that have no locks."""


TRIES, PAUSE = 6, 0.01
"""How often, and after how many seconds, to try again for a lock that someone may be looking at for a moment."""


@dataclass(frozen=True)
class _Owner:
    """Who holds a run, as the lock file says; it proves nothing where the kernel knows of locks."""

    pid: int
    host: str
    started: float | None = None

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"

    @property
    def elsewhere(self) -> bool:
        return self.host != socket.gethostname()


@dataclass(frozen=True)
class _Held:
    """A lock of this process: the file at ``path``, open as ``file``."""

    pid: int
    path: Path
    file: int


_held: ContextVar[frozenset[_Held]] = ContextVar("held", default=frozenset())


_open: set[int] = set()
"""Lock files that this process has open."""


def _forget() -> None:
    """Close, in a process that was just forked, the lock files of its parent: it would keep them locked after it."""
    for file in _open:
        with suppress(OSError):
            os.close(file)
    _open.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Lock a run directory against other processes within the block, and make it if it is missing.

    The kernel locks ``RUN/.lock`` for this process as long as it lives, and no longer; what is written there says who
    it is: process id, its start (seconds since 1970) and host. Only where the file system has no locks is a process of
    this id and start taken for the owner. Nested blocks of the same thread change nothing. Where several processes work
    on a run, the first is the owner.

    Raises:
        InputError: naming the process that holds the directory, or the file if it cannot be written or is no lock.
    """
    path = Path(os.path.realpath(run)) / NAME  # unlike resolve, of a circle of links, too
    if not writes_files() or any((held.pid, held.path) == (os.getpid(), path) for held in _held.get()):
        yield
        return
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    except OSError as error:
        _remove_folder(path.parent, made)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    token = _held.set(_held.get() | {_Held(os.getpid(), path, file)})
    try:
        yield
    finally:
        _held.reset(token)
        _give_back(path, file)
        _remove_folder(path.parent, made)


def in_use(run: Path) -> bool:
    """Return whether a process holds the directory, as far as can be known from here."""
    path = run / NAME
    if not path.exists():
        return False
    try:
        with _opened(path) as file:
            locked = _lock(file, path)
            owner = _read(file, path)
    except (InputError, OSError):  # no lock of ours; whoever wants to hold the run is told
        return False
    return locked is False or (owner is not None and (owner.elsewhere or (locked is None and _lives(owner))))


def release_foreign(run: Path) -> None:
    """Remove the lock of a process on another host that the caller knows to have ended; not one that is at work."""
    path = run / NAME
    if path.exists():
        with _opened(path) as file:
            if _lock(file, path) is not False and (owner := _read(file, path)) is not None and owner.elsewhere:
                path.unlink()


def check_held(path: Path) -> Path | None:
    """Find the run directory in which a file lies, if this process holds one; it must not be gone or another's by now.

    Raises:
        InputError: naming the directory.
    """
    for held in _held.get():
        if held.pid == os.getpid() and held.path.parent in Path(os.path.realpath(path)).parents:
            if not _is(held.file, held.path):
                raise InputError(
                    f"{held.path.parent}: the run directory or its {NAME} has vanished; bring it back and --resume"
                )
            return held.path.parent
    return None


def make_folder_of(path: Path) -> None:
    """Make the folder of a file, but never a directory that this process holds.

    A run directory that was removed would come back with this file alone, and be taken for a run.

    Raises:
        InputError: naming the directory that this process held.
        OSError: if the folder cannot be made.
    """
    folder, run = Path(os.path.realpath(path)).parent, check_held(path)
    if run is None:
        folder.mkdir(parents=True, exist_ok=True)
    elif folder != run:
        folder.mkdir(exist_ok=True)  # without parents: the run may vanish at this very moment


def _take(path: Path) -> int:
    """Lock the file and write who we are into it; it stays open."""
    while True:
        with _opened(path, os.O_CREAT) as file:
            locked = _lock(file, path)
            if not _is(file, path):  # its owner removed it while we waited
                continue
            owner = _read(file, path)
            if locked is False:
                raise InputError(f"{path.parent}: in use by {owner or 'another process'}; wait for it or stop it")
            if owner is not None and owner.elsewhere:
                raise InputError(f"{path.parent}: in use by {owner}; if that process is gone, remove {path}")
            if owner is not None and locked is None and _lives(owner):
                raise InputError(f"{path.parent}: in use by {owner}; wait for it or stop it")
            me = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
            os.ftruncate(file, 0)
            try:
                os.pwrite(file, json.dumps(me).encode(), 0)
            except OSError:  # the disk is full
                path.unlink()
                raise
            kept = os.dup(file)  # the lock is of both
        _open.add(kept)
        return kept


def _give_back(path: Path, file: int) -> None:
    """Remove the file unless it is another's, and let go of it."""
    with suppress(OSError):
        if _is(file, path):
            path.unlink()
    _open.discard(file)
    os.close(file)


def _remove_folder(folder: Path, made: bool) -> None:
    """Remove a folder that was made for the lock, where no run began in it."""
    if made:
        with suppress(OSError):  # as it should, if it holds anything
            folder.rmdir()


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open the lock file, and nothing that a link leads to or that is no file.

    Raises:
        InputError: if it is anything else than a file.
        OSError: if it cannot be opened.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _no_lock(path)
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _no_lock(path)
        yield file
    finally:
        os.close(file)


def _no_lock(path: Path) -> InputError:
    return InputError(f"{path}: not a lock file of ours; remove it if no process is at the run")


def _lock(file: int, path: Path) -> bool | None:
    """Lock an open file; False if another process has it, None where the file system has no locks."""
    for _ in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not _is(file, path):
                return False
            time.sleep(PAUSE)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
    return False


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _read(file: int, path: Path) -> _Owner | None:
    """Read the owner; None where the file is empty, as a process leaves it that dies while writing.

    Raises:
        InputError: if the file says anything else.
    """
    text = os.pread(file, 4096, 0)
    if not text:
        return None
    try:
        entry = json.loads(text)
        pid, host, started = entry["pid"], entry["host"], entry.get("started")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pid = host = started = None
    named = type(pid) is int and 0 < pid < 1 << 31 and isinstance(host, str)
    if not named or not (started is None or isinstance(started, int | float)):
        raise _no_lock(path)
    return _Owner(pid, host, started)


def _lives(owner: _Owner) -> bool:
    """Return whether that very process runs: its number may have gone to another one since."""
    try:
        process = psutil.Process(owner.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return owner.started is None or abs(process.create_time() - owner.started) < SAME_START
    except (psutil.NoSuchProcess, OverflowError):
        return False
    except psutil.AccessDenied:
        return True
