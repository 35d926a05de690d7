"""The benchmarks by name: one file and one line each."""

from collections.abc import Callable

from benchmarks import (
    autoattack,
    distributed,
    gap,
    hamming,
    headline,
    iteration,
    loader,
    memory,
    profile,
    s2ap,
    scale,
    sharpness,
    sources,
    start,
    sweeps,
    table7,
    tracking,
)
from benchmarks.measure import Row, Setting

BENCHMARKS: dict[str, Callable[[Setting], list[Row]]] = {
    "headline": headline.run,
    "profile": profile.run,
    "iteration": iteration.run,
    "s2ap": s2ap.run,
    "sources": sources.run,
    "tracking": tracking.run,
    "sharpness": sharpness.run,
    "gap": gap.run,
    "autoattack": autoattack.run,
    "autoattack-many": autoattack.run_on_many,
    "memory": memory.run,
    "hamming": hamming.run,
    "start": start.run,
    "sweeps": sweeps.run,
    "scale": scale.run,
    "loader": loader.run,
    "distributed": distributed.run,
    "table7": table7.run,
}
# Absolute times of searches that nobody makes on a CPU, and what takes it longest; work in which a GPU has no part.
UNUSUAL = {
    "cpu": {"autoattack-many", "table7"},
    "cuda": {"gap", "hamming", "headline", "loader", "profile", "scale", "start", "sweeps"},
}
