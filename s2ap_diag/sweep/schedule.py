"""Which task runs next, and how each has ended; independent of who runs them."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_diag.sweep.estimate import works
from s2ap_diag.sweep.place import filesystem_of
from s2ap_diag.sweep.plan import Task
from s2ap_diag.sweep.tasks import Outcome, Workplace, is_done, log_file, run_task

STATUS = "sweep.json"

ATTEMPTS = 2
"""How often a task whose process was killed is started again."""

State = Literal["waiting", "running", "done", "failed"]


@dataclass
class TaskStatus:
    """How a task stands; ``work`` is what it computes, in image passes, ``seconds`` what it took in this sweep."""

    name: str
    state: State
    work: float
    seconds: float = 0.0
    error: str = ""
    log: str = ""


class SweepStatus(BaseModel):
    """What ``--status`` reads: the states of a sweep's tasks, and the seconds left as far as they are known."""

    updated: float
    working: bool
    left: float | None
    tasks: list[TaskStatus]


@dataclass
class Schedule:
    """The tasks of a sweep and their states.

    Attributes:
        workers: how many run at once.
        on_change: called with the task whose state changed.
    """

    tasks: Sequence[Task]
    workplace: Workplace
    workers: int
    on_change: Callable[[TaskStatus], None] = lambda status: None
    statuses: dict[str, TaskStatus] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, weight in zip(self.tasks, works(self.tasks), strict=True):
            state: State = "done" if is_done(task, self.workplace.root) else "waiting"
            self.statuses[task.name] = TaskStatus(task.name, state, weight, log=log_file(task.name))

    def run(self, executor: Executor) -> None:
        """Run what is missing. A task that fails stops those that wait for it, and no others.

        A task whose worker is killed is started again once. The executor is shut down at the end.

        Raises:
            InputError: if another sweep works in the folder.
        """
        with self._alone():
            try:
                self._run(executor)
            finally:
                executor.shutdown(cancel_futures=True)
                for status in self.statuses.values():
                    if status.state == "running":  # it was stopped, and goes on the next time
                        status.state = "waiting"
                self.save(working=False)

    def _alone(self) -> AbstractContextManager[None]:
        """Lock the folder; behind a URL there is no lock to be had."""
        filesystem, path = filesystem_of(self.workplace.root)
        return lock.hold(Path(path)) if "file" in filesystem.protocol else nullcontext()

    def _run(self, executor: Executor) -> None:
        attempts: Counter[str] = Counter()
        pending: dict[Future[Outcome], Task] = {}
        while True:
            for task in self._ready()[: max(0, self.workers - len(pending))]:
                attempts[task.name] += 1
                self._set(task.name, "running")
                pending[executor.submit(run_task, task, self.workplace)] = task
            if not pending:
                return
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                task = pending.pop(future)
                try:
                    self._end(future.result())
                except BrokenProcessPool:
                    again = attempts[task.name] < ATTEMPTS
                    self._set(task.name, "waiting" if again else "failed", "its process was killed twice")
                except Exception as error:  # the cluster's own, once it has given up
                    self._set(task.name, "failed", f"{type(error).__name__}: {error}")

    def _ready(self) -> list[Task]:
        """List what can begin: first what others go on from, so that no worker waits for it in the end."""
        ready = []
        for task in self.tasks:
            if self.statuses[task.name].state != "waiting":
                continue
            before = self.statuses[task.after] if task.after is not None else None
            if before is not None and before.state == "failed":
                self.statuses[task.name].log = before.log  # its own was never begun
                self._set(task.name, "failed", f"it goes on from {before.name}, which failed")
            elif before is None or before.state == "done":
                ready.append(task)
        return sorted(ready, key=lambda task: task.until == "end")

    def _end(self, outcome: Outcome) -> None:
        self.statuses[outcome.name].seconds = outcome.seconds
        self._set(outcome.name, "failed" if outcome.error else "done", outcome.error or "")

    def _set(self, name: str, state: State, error: str = "") -> None:
        status = self.statuses[name]
        status.state, status.error = state, error if state == "failed" else ""
        self.save()
        self.on_change(status)

    @property
    def work_left(self) -> float:
        """Add up the work of the tasks that are neither done nor failed."""
        return sum(status.work for status in self.statuses.values() if status.state in ("waiting", "running"))

    @property
    def failed(self) -> list[TaskStatus]:
        """List the tasks that failed."""
        return [status for status in self.statuses.values() if status.state == "failed"]

    def save(self, working: bool = True) -> None:
        """Write the states where ``--status`` reads them."""
        left = seconds_left(list(self.statuses.values()), self.workers)
        snapshot = SweepStatus(updated=time.time(), working=working, left=left, tasks=list(self.statuses.values()))
        filesystem, path = filesystem_of(self.workplace.root)
        filesystem.makedirs(path, exist_ok=True)
        unfinished = f"{path}/.{STATUS}.tmp"
        with filesystem.open(unfinished, "w") as file:
            file.write(snapshot.model_dump_json())
        filesystem.mv(unfinished, f"{path}/{STATUS}")


def seconds_left(statuses: Sequence[TaskStatus], workers: int) -> float | None:
    """Estimate the seconds left from the speed of this sweep's tasks so far; None before the first is done."""
    timed = [status for status in statuses if status.state == "done" and status.seconds > 0]
    done = sum(status.work for status in timed)
    if not done:
        return None
    rate = sum(status.seconds for status in timed) / done / max(1, workers)
    return rate * sum(status.work for status in statuses if status.state in ("waiting", "running"))


def read_status(root: str) -> SweepStatus:
    """Read what :meth:`Schedule.save` wrote.

    Raises:
        InputError: if no sweep began there, or the file is no sweep's.
    """
    filesystem, path = filesystem_of(root)
    try:
        with filesystem.open(f"{path}/{STATUS}") as file:
            status = SweepStatus.model_validate_json(file.read())
    except FileNotFoundError as error:
        raise InputError(f"{root}: no sweep began here; start one with `s2ap-diag sweep GRID --runs {root}`") from error
    except ValueError as error:  # pydantic's, too
        raise InputError(
            f"{root}/{STATUS}: not the state of a sweep; start the sweep again, it does only what is missing"
        ) from error
    if "file" in filesystem.protocol:  # a killed sweep could not say that it ended
        status.working = status.working and lock.in_use(Path(path))
    return status
