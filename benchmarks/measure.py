"""What benchmarks are made of: their rows, the setting they run in, interleaved timing."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Goal:
    """What a figure should not exceed, or reach."""

    relation: Literal["<=", ">="]
    bound: float

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.relation == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def at_most(bound: float) -> Goal:
    return Goal("<=", bound)


def at_least(bound: float) -> Goal:
    return Goal(">=", bound)


@dataclass(frozen=True)
class Row:
    """One figure; a ratio has the unit ``x``."""

    name: str
    value: float
    unit: str
    goal: Goal | None = None
    detail: str = ""

    def record(self) -> dict[str, Any]:
        """Return it as it stands in the JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "goal": None if self.goal is None else str(self.goal),
            "met": None if self.goal is None else self.goal.met_by(self.value),
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Setting:
    """Where and how large: ``quick`` shrinks networks and batches until all of it takes a minute or two."""

    device: str = "cpu"
    threads: int = 1
    quick: bool = False

    def batch(self, full: int, cpu: int | None = None) -> int:
        """Choose the batch size: a quarter of it in quick runs, and ``cpu`` on a CPU, where larger ones take long."""
        if self.device == "cpu" and cpu is not None:
            full = cpu
        return full // 4 if self.quick else full

    @property
    def width(self) -> int | None:
        """Width of the networks, None for the published one."""
        return 8 if self.quick else None


@dataclass(frozen=True)
class Rounds:
    """Seconds of several functions that took turns, one entry per round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Compute the median over the rounds of the ratio within a round, which a slow drift of the machine spares."""
        return median(self._ratios(name, base))

    def compare(self, name: str, base: str) -> str:
        """Give the seconds behind a ratio, and its range over the rounds."""
        ratios = self._ratios(name, base)
        spread = f", {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds" if len(ratios) > 1 else ""
        return f"{self.median(name):.3g} s / {self.median(base):.3g} s{spread}"

    def _ratios(self, name: str, base: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True)]


def timed(function: Callable[[], object], device: str) -> float:
    """Measure the seconds of one call, work queued on the device included."""
    _synchronize(device)
    started = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - started


def interleaved(functions: Mapping[str, Callable[[], object]], *, rounds: int, device: str) -> Rounds:
    """Time the functions in turn, A B A B ...; whoever needs a warm-up calls them before."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function, device))
    return Rounds(seconds)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def machine(setting: Setting) -> dict[str, Any]:
    """Say what the figures depend on."""
    facts: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": setting.threads,
        "load_before": round(os.getloadavg()[0], 2),  # near 0 on an idle machine
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": setting.device,
    }
    if setting.device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(setting.device)
        facts["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
    return facts


def code() -> str:
    """Name the version of what is measured: a digest of the sources of the packages and the benchmarks."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(
        file for room in ("s2ap_core", "s2ap_diag", "benchmarks") for file in (root / room).rglob("*.py")
    ):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
