"""A folder of files of every kind, and a command called on them in a copy of this process, shut in and watched."""

import contextlib
import importlib
import multiprocessing.util
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

from s2ap_diag.commands import COMMANDS, main

for name in COMMANDS:
    importlib.import_module(f"s2ap_diag.commands.{name}")  # copies of this process then begin at once
for name in ("PIL.Image", "matplotlib.pyplot", "pandas", "scipy.io", "seaborn", "sklearn.datasets"):
    importlib.import_module(name)

SECONDS = 10
"""Seconds of processor time that a call may take before it is cut short."""

WAITED = 120
"""Seconds that it may take by the clock."""

MEMORY = 3 << 30
"""Bytes that it may ask for beside what this process has."""

DEFECT = 70
"""Exit status of a copy in which an exception got through."""


@dataclass(frozen=True)
class Said:
    """What a call did: exit status, negative for the signal that ended it, and its output."""

    status: int
    stdout: str
    stderr: str

    @property
    def cut_short(self) -> bool:
        """Whether it was ended for the time it took."""
        return self.status in (-signal.SIGXCPU, -signal.SIGALRM)


def call(arguments: Iterable[str], box: Path) -> Said:
    """Call a command in a copy of this process, whose folder is ``box/here``, without a network."""
    said = box.with_name(f"{box.name}.out"), box.with_name(f"{box.name}.err")
    pid = os.fork()
    if not pid:
        _run(list(arguments), box, *said)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Said(status, *(file.read_text(errors="replace") for file in said))


def _run(arguments: list[str], box: Path, *said: Path) -> NoReturn:
    status = DEFECT
    try:
        for number, file in enumerate(said, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (os.open(os.devnull, os.O_RDONLY), 1, 2), "rww")
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(kind, signal.SIG_DFL)
        signal.alarm(WAITED)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, resource.RLIM_INFINITY))
        socket.socket.connect = _no_network  # type: ignore[method-assign]
        os.environ |= {"HOME": str(box / "home"), "COLUMNS": "120"}
        os.chdir(box / "here")
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            multiprocessing.util._exit_function()  # as Python does before it ends: or semaphores of pools stay behind
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _no_network(*_: Any) -> NoReturn:
    raise ConnectionRefusedError("no network in here")


def copy(world: Path, box: Path) -> None:
    """Copy a folder with everything in it, pipes too."""
    for folder, _, names in os.walk(world):
        there = box / Path(folder).relative_to(world)
        there.mkdir(parents=True, exist_ok=True)
        shutil.copystat(folder, there)
        for name in names:
            path = Path(folder, name)
            if stat.S_ISFIFO(path.lstat().st_mode):
                os.mkfifo(there / name)
            else:
                shutil.copy2(path, there / name, follow_symlinks=False)
    for folder, names, _ in os.walk(world):
        for name in names:
            if (link := Path(folder, name)).is_symlink():
                (box / link.relative_to(world)).symlink_to(os.readlink(link))


def state(box: Path) -> dict[str, tuple[int, ...]]:
    """What tells whether a file in a folder is another, by its path."""
    found = {}
    for folder, _, names in os.walk(box):
        for name in names:
            seen = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_mode)
    return found


def changed(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], named: Iterable[Path]) -> list[str]:
    """Files that were made, changed or removed, but for those named and what lies in folders named."""
    free = [os.path.realpath(path) for path in named]
    return sorted(
        path
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
        and not any(os.path.realpath(path) == place or os.path.realpath(path).startswith(f"{place}/") for place in free)
    )
