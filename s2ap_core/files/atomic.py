"""Files that are written whole or not at all, and never in the place of what is no file."""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.kinds import kind_of
from s2ap_core.files.writer import writes_files

UNFINISHED = re.compile(r"\..+?(?:\.(?P<pid>\d+)-[0-9a-f]{8})?\.tmp")
"""Names of files that are not written to their end yet: ``.NAME.PID-RANDOM.tmp``."""


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; of several processes of a run, the first does.

    Of several processes that write one file at once, the last has written all of it. Into a device, such as
    ``/dev/null``, and into a pipe behind ``/dev/stdout`` or ``/dev/fd/N`` the bytes are written as they are.

    Raises:
        InputError: naming the path, if it is no place for a file (:func:`check_place`), the folder cannot be written to
            or the disk is full, or the run that it belongs to has vanished.
    """
    if not writes_files():
        return
    # Names of files that are no UTF-8 are written escaped.
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if check_place(path):
            _write_through(path, content)
            return
        lock.make_folder_of(path)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def leftovers(files: Iterable[Path]) -> Iterator[Path]:
    """Find the files that a killed process left half written; not what another process is writing."""
    for file in files:
        if unfinished := UNFINISHED.fullmatch(file.name):
            pid = int(unfinished["pid"] or 0)
            if pid in (0, os.getpid()) or not psutil.pid_exists(pid):
                yield file


def check_place(path: Path) -> bool:
    """Check that a file can take this place: nothing is there, or a file; return whether it is a stream to write into.

    Raises:
        InputError: if it is a folder, a link to a file or to nothing, a pipe that may wait for ever, or a disk.
        OSError: if the name is none that a file can have, or the folder cannot be read.
    """
    try:
        there = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISREG(there):
        return False
    if stat.S_ISCHR(there):
        return True
    if stat.S_ISLNK(there):
        with suppress(FileNotFoundError):
            behind = path.stat().st_mode
            if stat.S_ISCHR(behind) or stat.S_ISFIFO(behind):  # a shell's >(...) has its reader
                return True
        raise InputError(f"{path}: a symbolic link, which would be replaced; name {os.path.realpath(path)}")
    raise InputError(f"{path}: {kind_of(there)}, where a file is to be written; give another name")


def _write_through(path: Path, content: bytes) -> None:
    stream = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that nobody reads is an error at once
    try:
        os.set_blocking(stream, True)
        while content:
            content = content[os.write(stream, content) :]
    finally:
        os.close(stream)
