"""How many tasks run at once, and with what: cores, memory, GPUs, or a cluster's."""

import os
from concurrent.futures import Executor

import psutil
import torch

from s2ap_core.errors import InputError
from s2ap_diag.execution.execute import prepare
from s2ap_diag.sweep.estimate import macs_of_a_pass
from s2ap_diag.sweep.executors import LocalExecutor, RayExecutor
from s2ap_diag.sweep.memory import memory_of
from s2ap_diag.sweep.place import filesystem_of
from s2ap_diag.sweep.plan import Task

PROCESS = 0.6 * 2**30
"""Bytes of a process that has imported everything and holds small data."""


def resources(
    tasks: list[Task], workers: int | None, address: str | None, gpus_per_run: float, device: str
) -> tuple[Executor, int, int]:
    """Choose who runs the tasks, how many at once, and with how many threads each.

    The threads are those of ``OMP_NUM_THREADS``, or what there is.

    Raises:
        InputError: if there is no such cluster, or fewer GPUs than a run takes.
    """
    if gpus_per_run and device not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: with --gpus-per-run give --device cuda")
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() and int(asked) else None
    if address is not None:
        cluster = RayExecutor(address, cpus=threads or 1, gpus=gpus_per_run)
        return cluster, workers or cluster.slots(), threads or 1
    cores = cpu_cores()
    if device.startswith("cuda") and gpus_per_run:
        slots = gpu_slots(gpus_per_run)[:workers]
        return LocalExecutor(len(slots), slots), len(slots), threads or max(1, cores // len(slots))
    if workers is None:
        settings = {(t.config.data.name, t.config.network.name, t.config.network.width): t.config for t in tasks}
        largest = max(settings.values(), key=macs_of_a_pass)
        needed = PROCESS + memory_of(largest, prepare(largest))
        workers = min(fitting_workers(needed, cores), len(tasks)) if device == "cpu" else 1
    return LocalExecutor(workers), workers, threads or max(1, cores // workers)


def gpu_slots(gpus_per_run: float) -> list[str]:
    """Share the GPUs that are visible here among workers: ``CUDA_VISIBLE_DEVICES`` for each.

    Raises:
        InputError: if there are fewer GPUs than a run takes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    per_gpu = int(1 / gpus_per_run) if gpus_per_run < 1 else 1
    whole = max(1, int(gpus_per_run))
    groups = [",".join(names[i : i + whole]) for i in range(0, len(names) - whole + 1, whole)]
    if not groups:
        raise InputError(f"--gpus-per-run {gpus_per_run:g}: {len(names)} GPUs are visible")
    return [group for group in groups for _ in range(per_gpu)]


def cpu_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def absolute(root: str) -> str:
    """Give a local folder by its whole path, since the nodes of a cluster work in folders of their own.

    URLs stay as they are.
    """
    filesystem, path = filesystem_of(root)
    return str(path) if "file" in filesystem.protocol else root


def fitting_workers(memory: float, cores: int) -> int:
    """Count how many tasks of so many bytes run at once: one to a core, as far as the memory that is free goes."""
    return max(1, min(cores, int(0.9 * psutil.virtual_memory().available / memory)))
