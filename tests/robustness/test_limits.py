"""What ends a run early and in time: a loss that left all bounds, a disk that will not do. And what it says."""

import logging
import math
import os
import shutil
import warnings
from collections import namedtuple

import processes
import pytest
from click.testing import CliRunner

from s2ap_core.data import load
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.disk import bytes_of_run
from s2ap_core.training.loop import DIVERGED, Callback
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from s2ap_diag.execution.console import Once

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder():
    processes.uninterrupted()
    return processes.new_folder()


# --- a loss that diverges ---


class Inflate(Callback):
    """Makes the last layer's weights so large that the loss is finite and far out of bounds."""

    def __init__(self, stage: str, factor: float) -> None:
        self.stage, self.factor, self.seen = stage, factor, []

    def on_iteration(self, loop, step):
        self.seen.append((loop.stage, loop.epoch, loop.iteration, step.loss.item()))
        if (loop.stage, loop.epoch, loop.iteration) == (self.stage, 2, 0):
            loop.model.linear.bias.data[0] = self.factor


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        ("pretrain", r"lower pretrain\.lr \(0\.1\)$"),
        ("prune", r"lower prune\.lr \(0\.1\) or minimizer\.gamma \(0\.02\)$"),
        ("finetune", r"lower finetune\.lr \(0\.01\) or finetune\.gamma \(0\.03\)$"),
    ],
)
def test_a_loss_out_of_bounds_is_found_in_its_iteration(tmp_path, new_run, data, stage, remedy):
    run = new_run(
        tmp_path / "run",
        minimizer={"name": "s2ap", "gamma": 0.02, "warmup": 1},
        finetune={"awp": True, "gamma": 0.03},
    )
    watch = Inflate(stage, 1e5)
    with pytest.raises(InputError, match=rf"^{stage}: the loss is .* at epoch 2, iteration 1; .*{remedy}") as error:
        Stages(run, data, callbacks=[watch]).all()
    assert "nan" not in str(error.value)
    assert "inf" not in str(error.value)
    assert watch.seen[-1][:3] == (stage, 2, 0)
    tensors, header = load_tensors(run.state(stage))
    assert header["epoch"] == 1
    assert all(tensor.abs().max() < 1e4 for tensor in tensors.values() if tensor.is_floating_point())


@pytest.mark.usefixtures("tiny_network")
def test_the_bound_is_far_from_what_healthy_runs_see(tmp_path, new_run, data):
    watch = Inflate("nowhere", 0.0)
    for keep in (0.01, 0.3):
        run = new_run(
            tmp_path / str(keep), method={"keep": keep, "name": "hydra"}, minimizer={"name": "s2ap", "gamma": 0.5}
        )
        Stages(run, data, callbacks=[watch]).all()
    assert max(loss for *_, loss in watch.seen) < DIVERGED * math.log(10) / 50


# --- the disk ---


@pytest.mark.parametrize("keep", [None, 1, 2])
def test_the_disk_use_is_foreseen(folder, keep):
    run = folder / "run"
    options = [] if keep is None else ["--keep-checkpoints", str(keep)]
    assert CliRunner().invoke(main, processes.command(folder / "tiny.toml", run, *options)).exit_code == 0
    sizes = [file.stat().st_size for file in run.rglob("*.safetensors")]
    opened = RunDirectory.open(run)
    data = load(opened.config.data.name, opened.config.data.root, **opened.config.data.options)
    foreseen = bytes_of_run(opened.config, data, keep)
    assert sum(sizes) <= foreseen < 1.25 * sum(sizes) + max(sizes)


def test_a_disk_that_will_not_do_is_refused_before_anything_is_trained(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 700_000, 700_000))
    config, run = folder / "tiny.toml", folder / "run"
    outcome = CliRunner().invoke(main, processes.command(config, run))
    assert outcome.exit_code == 2
    (line,) = outcome.stderr.splitlines()
    assert "MB more, but 0.7 MB are free" in line
    assert "--keep-checkpoints" in line
    assert not (run / "ckpt").exists()
    assert "needs about" in (run / "run.log").read_text()


def test_kept_checkpoints_are_the_latest_and_the_result_is_the_same(folder, fault_table):
    run, whole = folder / "run", processes.uninterrupted()
    arguments = processes.command(folder / "tiny.toml", run, "--keep-checkpoints", "2")
    pid = processes.fork(arguments, folder / "said")
    assert processes.wait_for(run, 6, pid)
    os.kill(pid, 9)
    processes.wait(pid)
    assert processes.wait(processes.fork(arguments, folder / "said")) == 0
    lost = {f"ckpt/prune-epoch-00{epoch}.safetensors" for epoch in (0, 1)}
    assert set(processes.differing(run, whole)) == lost
    fault_table.add("kill -9", survived=True)


# --- what a run says ---


class Noisy(Callback):
    """A dependency that warns in each iteration, and our own warning beside it."""

    def on_iteration(self, loop, step):
        warnings.warn(f"deprecated in {loop.iteration}", DeprecationWarning, stacklevel=1)
        warnings.warn("an old driver", UserWarning, stacklevel=1)
        logging.getLogger("s2ap_core.x").warning("%s: %s", loop.stage, "this matters")


def test_the_console_has_what_matters_once_and_the_log_has_all(folder, monkeypatch):
    monkeypatch.setattr("s2ap_diag.execution.execute.build_trackers", lambda settings: [Noisy()])
    run = folder / "run"
    outcome = CliRunner().invoke(main, ["run", str(folder / "tiny.toml"), "--out", str(run)])
    assert outcome.exit_code == 0
    assert "driver" not in outcome.stderr
    assert "deprecated" not in outcome.stderr
    assert outcome.stderr.count("this matters") == 1
    assert outcome.stderr.count("only 16 images") == 1
    log = (run / "run.log").read_text()
    assert "an old driver" in log
    assert log.count("this matters") > 5
    for line in ("pretrain: epoch 2 of 2", "prune: epoch 0 of 3", "finetune: epoch 1 of 2", "evaluated prune", "done"):
        assert line in log
    assert all(line[:4].isdigit() and line[10] == " " for line in log.splitlines() if " INFO " in line)
    # Another command in the same process starts afresh, and Python's warnings are Python's again.
    assert not logging.getLogger("s2ap_core").isEnabledFor(logging.INFO)
    with pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_the_log_says_why_a_run_stopped(folder):
    config = folder / "tiny.toml"
    outcome = CliRunner().invoke(main, processes.command(config, folder / "run", "--set", "pretrain.lr=1e30"))
    assert outcome.exit_code == 2
    assert outcome.stderr.removeprefix("error: ").strip() in (folder / "run" / "run.log").read_text()
    assert "\n" not in outcome.stderr.strip()


def test_once_is_by_what_is_warned_of():
    once = Once()

    def shown(name: str, message: str, *arguments: object) -> bool:
        return once.filter(logging.LogRecord(name, logging.WARNING, "", 0, message, arguments, None))

    assert [shown("a", "%s: %s", stage, "weak") for stage in ("prune", "finetune")] == [True, False]
    assert [shown("a", "%s: %s", "prune", "blind"), shown("a", "plain"), shown("a", "plain")] == [True, True, False]
    assert not shown("py.warnings", "%s", "new")
