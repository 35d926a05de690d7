"""Whole commands as a user starts them, Python's start included."""

import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple


class Ended(NamedTuple):
    """What a command took: seconds by the clock, and its peak of memory in MB."""

    seconds: float
    memory: float


_MEASURED = """
import os, sys, time
started = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(process, 0)
print(time.perf_counter() - started, used.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""
"""Starts a command from a process that is small: Linux counts to a command's peak what its parent held as it began."""


def python(*arguments: str) -> Ended:
    """Run this interpreter with arguments, its output thrown away.

    Raises:
        subprocess.CalledProcessError: with what it said on stderr, if it fails.
    """
    call = [sys.executable, *arguments]
    small = [sys.executable, "-I", "-S", "-c", _MEASURED]
    process = subprocess.run([*small, *call], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    said, _, measured = process.stderr.rstrip().rpartition("\n")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, call, stderr=said)
    seconds, kilobytes = measured.split()
    return Ended(float(seconds), int(kilobytes) / 1024)


def overrides(settings: Mapping[str, object]) -> list[str]:
    """Write settings by dotted key as options of ``run`` and ``sweep``."""
    return [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]


def s2ap_diag(*arguments: str) -> Ended:
    """Run a command of the tool."""
    return python("-m", "s2ap_diag", *arguments)
