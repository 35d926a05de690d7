"""Many measurements of sharpness: several at once, kept as they are made, none made twice."""

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from s2ap_core.errors import InputError
from s2ap_core.files.arrays import file_checksum
from s2ap_core.files.record import load_json
from s2ap_core.masks.layers import score_masks
from s2ap_diag.curvature.adversary import objective_of
from s2ap_diag.curvature.density import SpectralDensity
from s2ap_diag.curvature.hessian import KEPT_GRAPHS
from s2ap_diag.reading.source import Source
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from s2ap_diag.sweep.executors import begin_worker, end_workers
from s2ap_diag.sweep.resources import PROCESS, cpu_cores, fitting_workers

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Job:
    """One checkpoint to be measured in one mode of BatchNorm.

    Attributes:
        objective, eps: of the adversary; None is the checkpoint's own.
    """

    path: Path
    settings: SharpnessSettings
    source: Source
    objective: str | None
    eps: str | None
    device: str

    def key(self) -> str:
        """Name what is measured and how: equal for the same bytes, read the same way, under the same settings."""
        of_settings = asdict(self.settings) | {"solver": [self.settings.solver.name, asdict(self.settings.solver)]}
        described = [of_settings, asdict(self.source), self.objective, self.eps]
        text = json.dumps([file_checksum(self.path), *described], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Measured:
    """What a job gave.

    Attributes:
        record: the entry of ``sharpness --json``; None for a checkpoint without scores.
        warnings: that have not been shown yet.
    """

    record: dict[str, Any] | None
    density: SpectralDensity | None = None
    warnings: tuple[logging.LogRecord, ...] = ()


def measure(job: Job, on_step: Advance = lambda part: None) -> Measured:
    """Do a job.

    Raises:
        InputError: if the checkpoint cannot be used, or a loss is not finite.
    """
    checkpoint = job.source.open(job.path, job.device)  # anew for each mode: one of them may change the statistics
    if not score_masks(checkpoint.model):
        return Measured(None)
    data = job.source.data(checkpoint).to(job.device)
    adversary = objective_of(checkpoint, job.objective, job.eps)
    sharpness = measure_sharpness(checkpoint, data, adversary, job.settings, on_step)
    read = {key: value for key, value in checkpoint.header.items() if key == "read"}  # of another tool's file
    return Measured(sharpness.record() | read | {"key": job.key()}, sharpness.density)


def measure_all(jobs: Sequence[Job], workers: int, advance: Advance) -> Iterator[tuple[Job, Measured]]:
    """Do jobs, ``workers`` at once on a share of the cores each, and yield each as it ends.

    Args:
        advance: called with parts of the work, in measurements.

    Raises:
        InputError: as :func:`measure`; what still runs is ended.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            parts = 1 + len(job.settings.rho)
            yield job, measure(job, lambda part, parts=parts: advance(part / parts))  # type: ignore[misc]
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads,)) as pool:
        futures = {pool.submit(_measure_apart, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                try:
                    measured = future.result()
                except BrokenProcessPool as error:
                    raise InputError(
                        f"{futures[future].path}: a process that measured was killed, perhaps for its memory; give "
                        "fewer --workers; with --json FILE --resume goes on"
                    ) from error
                for warning in measured.warnings:
                    logging.getLogger(warning.name).handle(warning)
                advance(1)
                yield futures[future], measured
        finally:
            end_workers(pool, wait=False, cancel_futures=True)


def _begin(threads: int) -> None:
    begin_worker(None)
    torch.set_num_threads(threads)


def _measure_apart(job: Job) -> Measured:
    """Do a job in a process that has no terminal: the warnings come back with it."""
    warnings: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger().handlers = [QueueHandler(warnings)]
    measured = measure(job)
    return replace(measured, warnings=tuple(warnings.get() for _ in range(warnings.qsize())))


def workers_for(device: str, jobs: int) -> int:
    """Choose how many measurements run at once: on a CPU one for each core, as far as memory goes; elsewhere one."""
    return min(fitting_workers(PROCESS + KEPT_GRAPHS, cpu_cores()), jobs) if device == "cpu" else 1


def measured_before(file: Path, jobs: Sequence[Job]) -> dict[Job, Measured]:
    """Find which jobs ``sharpness --json FILE`` holds the results of; none where there is no file.

    Raises:
        InputError: if the file is something else, or holds checkpoints that none of the jobs is of.
    """
    if not file.exists():
        return {}
    records = load_json(file, list, "name the file of an earlier `s2ap-diag sharpness --json`, or a new one")
    by_key = {r["key"]: r for r in records if isinstance(r, dict) and {"key", "checkpoint"} <= r.keys()}
    keys, asked = {job: job.key() for job in jobs}, {str(job.path) for job in jobs}
    for key, record in by_key.items():
        if record["checkpoint"] not in asked and key not in keys.values():
            raise InputError(f"--resume: {file} holds {record['checkpoint']} too; name it as well, or another file")
    # The same bytes may lie in several places: each is named by its own.
    return {job: Measured(by_key[key] | {"checkpoint": str(job.path)}) for job, key in keys.items() if key in by_key}
