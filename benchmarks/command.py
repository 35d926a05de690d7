"""Whole commands as a user starts them, Python's start included."""

import os
import subprocess
import sys
import time
from typing import NamedTuple


class Ended(NamedTuple):
    """What a command took: seconds by the clock, and its peak of memory in MB."""

    seconds: float
    memory: float


def python(*arguments: str) -> Ended:
    """Run this interpreter with arguments, its output thrown away.

    Raises:
        subprocess.CalledProcessError: with what it said on stderr, if it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments, stderr=said)
    return Ended(time.perf_counter() - started, used.ru_maxrss / 1024)


def s2ap_diag(*arguments: str) -> Ended:
    """Run a command of the tool."""
    return python("-m", "s2ap_diag", *arguments)
