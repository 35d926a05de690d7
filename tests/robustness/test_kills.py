"""kill -9 at any moment of a run, again and again: the run that goes on ends as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import soak

from s2ap_core.runs import course
from s2ap_core.runs.directory import RunDirectory

KILLS = soak.amount(12, 62)


def in_mid_write(steps: int) -> Callable[[], None]:
    """Arm a process to kill itself when it is about to flush or rename a file for the ``steps``-th time."""

    def arm() -> None:
        left = iter(range(steps))

        def counted(function: Callable) -> Callable:
            def step(*arguments):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)

            return step

        os.fsync, os.replace = counted(os.fsync), counted(os.replace)

    return arm


def kill_once(kind: str, config: Path, run: Path, rng: random.Random, share: float) -> bool:
    """Go on with a run and kill it; False if it had ended before.

    Those killed by the clock are killed some time after ``share`` of the work is on disk.
    """
    arguments, said = processes.command(config, run), run.with_name("said")
    if kind == "in mid-write":
        return processes.wait(processes.fork(arguments, said, in_mid_write(rng.randrange(14)))) == -signal.SIGKILL
    popen = processes.spawn(arguments, said) if kind == "the command" else None
    pid = popen.pid if popen else processes.fork(arguments, said)
    processes.wait_for(run, int(share * (processes.EPOCHS + processes.BATCHES)), pid)
    time.sleep(rng.uniform(0, 0.3))
    os.kill(pid, signal.SIGKILL)
    status = popen.wait() if popen else processes.wait(pid)
    assert status in (0, -signal.SIGKILL), said.read_text()
    return status == -signal.SIGKILL


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(fault_table):
    rng, whole, kills, ends = random.Random(soak.SEED), processes.uninterrupted(), 0, 0
    kinds = ["by the clock", "in mid-write"] * 2 + ["the command"] + ["in mid-write", "by the clock"]
    while kills < KILLS and soak.time_left():
        folder = processes.new_folder()
        config, run = folder / "tiny.toml", folder / "run"
        planned = min(12, KILLS - kills)
        tried = 0
        for tried in range(1, planned + 1):
            kind = kinds[(kills + tried) % len(kinds)]
            if not kill_once(kind, config, run, rng, (tried - 1 + rng.random()) / planned):
                tried -= 1
                break
            assert processes.unreadable(run) == []
        kills += tried
        processes.finish(config, run)
        lost = processes.differing(run, whole)
        for _ in range(tried):
            fault_table.add("kill -9 / at any moment", survived=not lost)
        assert lost == [], f"seed {soak.SEED}"
        rows = [tuple(row.values())[:4] for row in processes.metrics(run)]
        assert len(rows) == len(set(rows))
        ends += 1
    assert kills >= KILLS or not soak.time_left()
    assert ends <= KILLS  # the kills come while runs are at work, not between runs that had ended


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
def test_a_run_that_is_killed_as_it_begins_begins_again(steps, fault_table):
    processes.uninterrupted()  # imports what the copies of this process need
    folder = processes.new_folder()
    arguments, said = processes.command(folder / "tiny.toml", folder / "run"), folder / "said"
    assert processes.wait(processes.fork(arguments, said, in_mid_write(steps))) == -signal.SIGKILL
    # Without --resume, too, where there is nothing to resume yet.
    begun = (folder / "run" / "config.toml").exists()
    again = arguments if begun else [word for word in arguments if word != "--resume"]
    status = processes.wait(processes.fork(again, said, in_mid_write(12)))
    fault_table.add("kill -9 / as it begins", survived=status == -signal.SIGKILL)
    assert status == -signal.SIGKILL, said.read_text()
    assert processes.done(folder / "run") >= 1


def at_boundary(stage: str, *, noted: bool) -> Callable[[], None]:
    """Arm a process to kill itself when a stage has ended, before or after ``results.json`` says so."""

    def arm() -> None:
        add_results = RunDirectory.add_results

        def note(run: RunDirectory, **entries: object) -> None:
            if stage in entries and not noted:
                os.kill(os.getpid(), signal.SIGKILL)
            add_results(run, **entries)
            if stage in entries:
                os.kill(os.getpid(), signal.SIGKILL)

        RunDirectory.add_results = note

    return arm


def test_a_run_that_is_killed_between_any_two_stages_ends_as_if_it_had_not_been(fault_table):
    whole, folder = processes.uninterrupted(), processes.new_folder()
    config, run = folder / "tiny.toml", folder / "run"
    stages = [*course.TRAINED_STAGES, *(f"evaluate-{stage}" for stage in course.TRAINED_STAGES)]
    assert sorted(stages) == sorted(RunDirectory.open(whole).results())
    for stage in stages:
        for noted in (False, True):
            pid = processes.fork(processes.command(config, run), folder / "said", at_boundary(stage, noted=noted))
            assert processes.wait(pid) == -signal.SIGKILL, (folder / "said").read_text()
            assert processes.unreadable(run) == []
    processes.finish(config, run)
    lost = processes.differing(run, whole)
    for _ in 2 * stages:
        fault_table.add("kill -9 / between two stages", survived=not lost)
    assert lost == []
