"""Peak memory of one function in a process of its own."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.measure import Setting


@dataclass(frozen=True)
class Peak:
    """Bytes: the highest that a process held, and what it held before the work began."""

    highest: int
    before: int

    @property
    def grown(self) -> int:
        return self.highest - self.before


def peak(work: Callable[[Setting], object], setting: Setting) -> Peak:
    """Run ``work(setting)`` in a fresh interpreter; of resident memory, or of the GPU's where it runs on one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run, work, setting).result()


def _run(work: Callable[[Setting], object], setting: Setting) -> Peak:
    torch.set_num_threads(setting.threads)
    if setting.device.startswith("cuda"):
        work(setting)
        return Peak(torch.cuda.max_memory_allocated(setting.device), 0)
    before = _highest()
    work(setting)
    return Peak(_highest(), before)


def _highest() -> int:
    """Read the highest resident set so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, which on Linux starts from what the parent held when it forked.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
