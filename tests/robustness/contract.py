"""What every command promises on bad input, checked on one call of it."""

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from click.testing import CliRunner

from s2ap_diag.commands import main

LONGEST = 10.0
"""Seconds of processor time that a command may take over a small file."""

WAITED = 60.0
"""Seconds that it may take by the clock, beside whatever else the machine does."""

LARGEST = 1 << 30
"""Bytes that it may add to the process's memory."""


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit status, and standard output and error."""

    status: int
    stdout: str
    stderr: str

    def records(self) -> Any:
        """The JSON on standard output."""
        return json.loads(self.stdout)


class Broken(AssertionError):
    """A command that did what none may do on bad input."""


def snapshot(folder: Path) -> dict[Path, str]:
    """What lies in a folder: a link's target, or the checksum of a file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> None:
    """Let :func:`peak` start anew from the present size (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def checked(arguments: list[Any], untouched: Path | None = None, statuses: tuple[int, ...] = (0, 2)) -> Outcome:
    """Call a command and hold it to what every command promises on bad input.

    Args:
        untouched: a folder in which nothing may change, appear or go.

    Raises:
        Broken: for a traceback, another exit status, more or less than one line of a refusal, output beside
            it, numbers that are not finite, a changed or stray file, or too much time or memory.
    """
    before = snapshot(untouched) if untouched else {}
    forget_peak()
    resident, started, processor = psutil.Process().memory_info().rss, time.monotonic(), time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", ResourceWarning)
        result = CliRunner().invoke(main, [str(a) for a in arguments])
    waited, seconds, grown = time.monotonic() - started, time.process_time() - processor, peak() - resident
    said = f"s2ap-diag {' '.join(map(str, arguments))}: "
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise Broken(f"{said}{result.exception!r}") from result.exception
    if result.exit_code not in statuses:
        raise Broken(f"{said}exit status {result.exit_code}")
    if result.exit_code == 2:
        lines = result.stderr.splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: ") or result.stdout:
            raise Broken(f"{said}not one line: {result.stderr!r} {result.stdout!r}")
        if warned:
            raise Broken(f"{said}a warning beside the error: {warned[0].message}")
    if untouched and snapshot(untouched) != before:
        raise Broken(f"{said}changed {untouched}")
    if seconds > LONGEST or waited > WAITED or grown > LARGEST:
        raise Broken(f"{said}took {seconds:.1f} s ({waited:.1f} s by the clock) and {grown / 2**20:.0f} MiB")
    outcome = Outcome(result.exit_code, result.stdout, result.stderr)
    if outcome.status == 0 and "--json" in arguments:
        for number in numbers(outcome.records()):
            if not math.isfinite(number):
                raise Broken(f"{said}gave {number}")
    return outcome


def numbers(entry: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(entry, dict | list):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from numbers(part)
    elif isinstance(entry, int | float):
        yield entry
