"""How runs stand, read while they go on: against their files read in another way, and from another process."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from s2ap_core.files import lock
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.loop import Callback
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.execution.callbacks import StageProgress
from s2ap_diag.execution.progress import LinedProgress
from s2ap_diag.output.live import sparkline
from s2ap_diag.reading.snapshot import NEAR, Watcher
from s2ap_diag.sweep.progress import RunningTasks
from tests.diag.commands.running import invoke
from tests.reading import masks_in


class Looking(Callback):
    """Looks at its run at the first iteration of each epoch, and at each batch of an evaluation."""

    def __init__(self, path):
        self.watcher, self.seen = Watcher(path), []

    def on_iteration(self, loop, step):
        if loop.iteration == 0:
            self.seen.append(self.watcher.look())

    def on_evaluated(self, done, total):
        self.seen.append(self.watcher.look())


@pytest.fixture(scope="module")
def watched(tmp_path_factory, new_run, data, tiny_network):
    """A run that was looked at all along, what was seen, and the line below its bar at the end."""
    run = new_run(
        tmp_path_factory.mktemp("runs") / "run",
        minimizer={"name": "s2ap", "gamma": 1.0, "warmup": 1},
        evaluation={"stages": ["finetune"]},
        tracking={"every": 1, "iterations": 1, "images": 8},
    )
    looking = Looking(run.path)
    progress = LinedProgress(console=Console(file=io.StringIO(), force_terminal=True))
    shown = StageProgress(progress, run.path)
    Stages(run, data, callbacks=[looking, shown, *build_trackers(run.config.tracking)]).all()
    return run, looking.seen, shown.line


def test_what_is_seen_while_it_runs(watched):
    _, seen, line = watched
    stages = [(one.stage, one.done, one.total) for one in seen]
    assert stages[:7] == [
        ("pretrain", 0, 2), ("pretrain", 1, 2), ("prune", 0, 3), ("prune", 1, 3), ("prune", 2, 3), ("finetune", 0, 2),
        ("finetune", 1, 2),
    ]  # fmt: skip
    assert [one[1:] for one in stages[7:]] == [(6, 12), (12, 12)]
    assert {one[0] for one in stages[7:]} == {"evaluate finetune"}
    assert {one.state for one in seen} == {"running"}
    assert seen[0].left is None
    assert all(one.left >= 0 for one in seen[1:])
    assert line.startswith("finetune 1/2 · under a minute left · loss ")
    assert " · flips " in line


def test_readings_are_those_of_the_files(watched):
    run, seen, _ = watched
    first = masks_in(run.masks(0))
    entries = sum(mask.size for mask in first.values())
    assert seen[-1].entries == entries
    for epoch in (1, 2, 3):
        mask = masks_in(run.masks(epoch))
        flipped = sum(int((mask[name] != first[name]).sum()) for name in first)
        assert seen[-1].curves["h"][epoch] == pytest.approx(flipped / entries)
        near = count = 0
        scored = load_checkpoint(run.checkpoint(f"prune-epoch-{epoch:03d}")).model
        for module in scored.modules():
            for mask_of in getattr(getattr(module, "parametrizations", {}), "weight", []):
                size = np.sort(np.abs(mask_of.scores.detach().numpy().astype(float).ravel()))[::-1]
                threshold = (size[mask_of.n_keep - 1] + size[mask_of.n_keep]) / 2
                near += int((np.abs(size - threshold) <= NEAR * size).sum())
                count += size.size
        assert seen[-1].curves["near"][epoch] == pytest.approx(near / count)
    rows = [line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines()]
    flips = {int(row[1]): float(row[4]) for row in rows if row[2] == "" and row[3] == "perturbation_flips"}
    assert seen[-1].curves["flips"] == flips
    assert sorted(flips) == [2, 3]
    assert seen[4].curves["h"].keys() == {1, 2}  # the third epoch's mask was not there yet


@pytest.fixture
def copy(watched, tmp_path):
    """A copy of the run before its finetuning, which a test may change."""
    path = Path(shutil.copytree(watched[0].path, tmp_path / "run"))
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps({key: results[key] for key in ("pretrain", "prune")}))
    return path


def test_without_a_terminal_it_prints_once(watched, copy):
    done = invoke("watch", watched[0].path)
    assert done.exit_code == 0, done.output
    assert "\ndone\n" in done.stdout
    stopped = invoke("watch", copy)
    assert stopped.exit_code == 0
    assert "stopped at finetune 2/2" in stopped.stdout
    both = invoke("watch", copy.parent)
    assert both.exit_code == 0
    assert "1 stopped" in " ".join(both.stdout.split())  # the heading wraps where the path is long
    for shown in (done, stopped, both):
        assert max(map(len, shown.stdout.splitlines())) <= 80
    nothing = invoke("watch", copy / "masks")
    assert nothing.exit_code == 2
    assert "holds no run" in nothing.stderr


def test_what_check_would_say_is_said_while_it_runs(copy):
    assert "warning" not in invoke("watch", copy).stdout
    metrics = copy / "metrics.csv"
    rows = [line.split(",") for line in metrics.read_text().splitlines()]
    quiet = [[*row[:4], "0.0"] if row[3] == "perturbation_flips" else row for row in rows]
    metrics.write_text("\n".join(map(",".join, quiet)) + "\nprune,3,,val_lo")  # and a line that is being written
    shown = " ".join(invoke("watch", copy).stdout.split())
    assert "warning: flips: z flips no mask bit: widen its radius: `s2ap-diag run" in shown
    assert "run: flips: z flips no mask bit" in " ".join(invoke("watch", copy.parent).stdout.split())


def test_on_a_terminal_it_follows_until_the_run_ends(watched, tmp_path):
    """From another process, while this one holds the run."""
    path = Path(shutil.copytree(watched[0].path, tmp_path / "run"))
    (path / "results.json").write_text("{}")
    ours, theirs = pty.openpty()
    text = b""
    with lock.hold(path):
        code = "from s2ap_core.models import NETWORKS; from tests.tiny import Tiny; NETWORKS['tiny'] = Tiny\n"
        code += "from s2ap_diag.commands import main; main()"
        call = [sys.executable, "-c", code, "watch", str(path)]
        root = Path(__file__).parents[3]
        process = subprocess.Popen(call, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "80"}, cwd=root)
        os.close(theirs)
        text = until(ours, b"pretrain 2/2")
        assert b"stopped" not in text
        assert process.poll() is None
    text += until(ours, b"stopped at pretrain")
    assert process.wait(60) == 0


def until(terminal, words, seconds=120):
    """What a terminal shows until these words come."""
    text, end = b"", time.monotonic() + seconds
    while words not in text:
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 65536)
    return text


def test_a_sweep_says_how_its_tasks_stand(copy):
    class Status:
        state = "running"

    class Stub:
        workplace = type("Workplace", (), {"root": str(copy.parent)})

    stub = Stub()
    stub.statuses = {"run": Status(), "not-begun": Status()}
    (line,) = RunningTasks(stub).lines()
    assert line == Watcher(copy, near=False).look().line("run")
    assert line.startswith("run · stopped at finetune 2/2 · loss ")


def test_a_sparkline_is_the_curve():
    assert sparkline([0, 7, 3.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(list(range(100)), width=10)) == 10


def test_metrics_are_read_again_where_they_have_changed(watched, copy, monkeypatch):
    """Not at each look of each second: a run of many epochs has many rows."""
    file = copy / "metrics.csv"
    watcher, opened, read_text = Watcher(copy), [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: (opened.append(self), read_text(self, **how))[1])
    before = [watcher.look() for _ in range(3)][-1]
    assert opened.count(file) == 1
    with file.open("a") as rows:
        rows.write("finetune,99,,train_loss,0.125\n")
    assert watcher.look().loss == {**before.loss, 99: 0.125}
    whole = file.read_text()
    file.write_text(whole[: whole.index("finetune,")])  # cut back, as where a run goes on
    assert watcher.look().loss != before.loss
    assert opened.count(file) == 4


def test_a_narrow_terminal_is_told_of_no_option_that_it_lacks(copy, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    shown = " ".join(invoke("watch", copy.parent).output.split())
    assert "(a wider terminal)" in shown
    assert "--wide" not in shown
