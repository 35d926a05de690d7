"""Who runs the tasks: worker processes here, or a Ray cluster. Both are ``concurrent.futures`` executors."""

import logging
import multiprocessing
import os
import queue
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from s2ap_core.errors import InputError
from s2ap_diag.execution.parent import end_when


class LocalExecutor(Executor):
    """Run tasks in worker processes that import once.

    Each is a pool of its own, so that a killed one takes no other task with it.

    Args:
        workers: how many; no more tasks may be submitted at once.
        slots: values of ``CUDA_VISIBLE_DEVICES``, one for each worker; none leaves it alone.
    """

    def __init__(self, workers: int, slots: Sequence[str] = ()) -> None:
        self._slots: list[str | None] = [*slots] or [None] * workers
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(self._slots)):
            self._idle.put(index)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task as to any executor; a pool whose process was killed is replaced."""
        index = self._idle.get()
        try:
            future = self._pools[index].submit(fn, *args, **kwargs)
        except (KeyError, BrokenProcessPool):
            self._pools[index] = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=begin_worker,
                initargs=(self._slots[index],),
            )
            future = self._pools[index].submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._idle.put(index))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers now, whatever they are doing: the next time runs go on from their last epoch."""
        for pool in self._pools.values():
            end_workers(pool, wait=wait, cancel_futures=cancel_futures)


def end_workers(pool: ProcessPoolExecutor, *, wait: bool, cancel_futures: bool) -> None:
    """End the processes of a pool now, whatever they are doing, where its own shutdown would let them finish."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=cancel_futures)
    for process in processes:
        process.terminate()
    if wait:
        for process in processes:
            process.join()


def begin_worker(slot: str | None) -> None:
    """Make a spawned process end with its parent and leave interruptions to it; give it this GPU, if any."""
    # Whoever started the sweep handles an interruption; a terminal sends it to all its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_when(parent.join)
    if slot is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot


class RayExecutor(Executor):
    """Run tasks on a Ray cluster, and begin them again where a node died.

    Args:
        address: of the cluster, or ``auto``.
        cpus, gpus: that a task takes; GPUs may be a fraction.

    Raises:
        InputError: if Ray is not installed, or no cluster answers.
    """

    RETRIES = 3

    def __init__(self, address: str, cpus: int, gpus: float) -> None:
        try:
            import ray  # an extra
        except ModuleNotFoundError as error:
            raise InputError(f"--ray {address}: Ray is not installed; pip install 's2ap-diag[cluster]'") from error
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # a cluster that is started here says nothing of it to anyone
        logging.getLogger("ray").setLevel(logging.ERROR)
        self.ray, self.cpus, self.gpus = ray, cpus, gpus
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            terminated = signal.getsignal(signal.SIGTERM)
            ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
            signal.signal(signal.SIGTERM, terminated)  # Ray's own would end the sweep with status 1
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray {address}: no cluster answers ({error}); start one with `ray start`") from error

    def slots(self) -> int:
        """Count how many tasks the cluster runs at once."""
        there = self.ray.cluster_resources()
        fits = there.get("CPU", 1) / self.cpus
        return max(1, int(min(fits, there.get("GPU", 0) / self.gpus) if self.gpus else fits))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task as to any executor."""
        options: Any = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": self.RETRIES}
        if self.gpus:  # a worker that had one GPU would stay on it
            options["max_calls"] = 1
        remote = self.ray.remote(**options)(fn)
        future: Future[Any] = remote.remote(*args, **kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; what still runs there is cancelled with the job."""
        del wait, cancel_futures
        self.ray.shutdown()
