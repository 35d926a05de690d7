"""kill -9 of sweeps and of runs of two processes, or of a process of theirs: they end as if nothing had happened.

Each takes a minute, since each process imports anew, so that they belong to a soak; ordinary sessions kill one of
each in ``tests/diag/sweep`` and ``tests/core/distributed``.
"""

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import processes
import psutil
import pytest
import soak

from tests.faults import FaultTable

pytestmark = pytest.mark.skipif(not soak.SOAK, reason="takes minutes; make soak runs it")

GRID = """
[set]
{settings}
[[group]]
presets = ["svhn-resnet18-harp-orig-90", "svhn-resnet18-harp-s2ap-90"]
values = {{ seed = [0, 1] }}
sharpness = false
"""
SETTINGS = {
    "data.name": '"imagenet"',
    "data.options.size": 8,
    "data.options.workers": 0,
    "network.width": 2,
    "objective.steps": 1,
    "minimizer.warmup": 1,
    "pretrain.epochs": 2,
    "prune.epochs": 3,
    "finetune.epochs": 2,
    "pretrain.batch_size": 40,
    "prune.batch_size": 40,
    "finetune.batch_size": 40,
    "evaluation.attack": '"none"',
    "tracking.every": 1,
    "tracking.images": 8,
    "tracking.iterations": 1,
}


def kill_one(job: "subprocess.Popen[bytes]", rng: random.Random) -> bool:
    """Kill a job or one of its processes, and wait until all of them have ended; False if the job had ended before."""
    started = psutil.Process(job.pid)
    if job.poll() is not None:
        return False
    children = started.children(recursive=True)
    with suppress(psutil.NoSuchProcess):
        rng.choice([started, *children]).kill()
    time.sleep(rng.uniform(0, 1))
    with suppress(psutil.NoSuchProcess):
        children += started.children(recursive=True)
    for process in (started, *children):  # a sweep goes on without the worker that was killed
        with suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, alive
    return True


def killed_again_and_again(
    start: Callable[[], "subprocess.Popen[bytes]"],
    said: Path,
    done: Callable[[], float],
    kills: int,
    rng: random.Random,
) -> int:
    """Start a job and kill it when some of it is done, again and again, and let it end; how often it was killed."""
    killed = 0
    for turn in range(kills):
        if not soak.time_left():
            break
        job, share = start(), (turn + rng.random()) / kills
        while job.poll() is None and done() < share:
            time.sleep(0.02)
        if not kill_one(job, rng):
            break
        killed += 1
    assert start().wait() == 0, f"seed {soak.SEED}: {said.read_text()}"
    return killed


def test_a_run_of_two_processes(fault_table: FaultTable) -> None:
    rng, kills = random.Random(soak.SEED), soak.amount(1, 10)
    whole, folder = processes.new_folder(), processes.new_folder()
    config, run = folder / "tiny.toml", folder / "run"
    config.write_text((whole / "tiny.toml").read_text())
    words = processes.command(config, whole / "run", "--nproc", "2")
    assert processes.spawn(words, whole / "said").wait() == 0, (whole / "said").read_text()
    units = processes.EPOCHS + processes.BATCHES
    killed = killed_again_and_again(
        lambda: processes.spawn(processes.command(config, run, "--nproc", "2"), folder / "said"),
        folder / "said",
        lambda: processes.done(run) / units,
        kills,
        rng,
    )
    lost = processes.differing(run, whole / "run")
    for _ in range(killed):
        fault_table.add("kill -9 / of two processes", survived=not lost)
    assert lost == [], f"seed {soak.SEED}"
    assert killed or not soak.time_left()


def test_a_sweep(fault_table: FaultTable) -> None:
    rng, kills = random.Random(soak.SEED), soak.amount(1, 10)
    folder = processes.new_folder()
    grid = folder / "grid.toml"
    root = f'"data.root" = "{processes.all_images()}"\n'
    grid.write_text(GRID.format(settings=root + "".join(f'"{key}" = {value}\n' for key, value in SETTINGS.items())))

    def start(runs: Path) -> "subprocess.Popen[bytes]":
        words = ["sweep", str(grid), "--runs", str(runs), "--workers", "2", "--quiet"]
        return processes.spawn(words, folder / "said")

    whole, runs = folder / "whole", folder / "runs"
    assert start(whole).wait() == 0, (folder / "said").read_text()
    files = len(masks(whole))
    killed = killed_again_and_again(lambda: start(runs), folder / "said", lambda: len(masks(runs)) / files, kills, rng)
    ours, theirs = results(runs), results(whole)
    lost = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    for _ in range(killed):
        fault_table.add("kill -9 / of a sweep", survived=not lost)
    assert lost == [], f"seed {soak.SEED}"
    assert killed or not soak.time_left()


def masks(runs: Path) -> list[Path]:
    """The masks that are on disk, by which a sweep's progress is told."""
    return list(runs.glob("**/masks/*.safetensors"))


def results(runs: Path) -> dict[str, bytes]:
    """What the runs of a sweep found."""
    found = {}
    for run in runs.iterdir():
        if (run / "config.toml").exists():
            found |= {f"{run.name}/{name}": held for name, held in processes.contents(run).items()}
    assert found
    return found
