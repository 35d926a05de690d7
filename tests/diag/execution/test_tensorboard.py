"""What metrics.csv gets is what TensorBoard reads, each epoch once, also of a run that was stopped and resumed."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from s2ap_core.errors import InputError
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.loop import Callback
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.execution.execute import execute, prepare
from s2ap_diag.execution.tensorboard import TensorBoard

pytestmark = pytest.mark.usefixtures("tiny_network")

SECTIONS = {
    "minimizer": {"name": "s2ap", "gamma": 0.1},
    "tracking": {"tensorboard": True, "every": 2, "iterations": 1, "images": 8, "by_layer": True},
    "evaluation": {"stages": ["finetune"], "attack": "none"},
}


class StopAt(Callback):
    """Stop the process when an epoch is in metrics.csv, and the state that a resume goes on from is not saved yet."""

    def __init__(self, stage, epoch):
        self.place = stage, epoch

    def on_recorded(self, loop, rows):
        if (loop.stage, loop.epoch) == self.place:
            raise KeyboardInterrupt


def scalars(run: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """What TensorBoard's own reader finds, by stage and tag."""
    found = {}
    for folder in (run / "tensorboard").iterdir():
        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[folder.name, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def recorded(run: Path, iterations: int) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The rows of metrics.csv in the same form."""
    expected: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in pd.read_csv(run / "metrics.csv").itertuples():
        whole = np.isnan(row.iteration)
        tag = row.metric if whole else f"iteration/{row.metric}"
        step = row.epoch if whole else (row.epoch - 1) * iterations + int(row.iteration)
        expected.setdefault((row.stage, tag), []).append((step, float(np.float32(row.value))))
    return expected


def train(run, data, *others):
    Stages(run, data, callbacks=[*build_trackers(run.config.tracking), TensorBoard(run), *others]).all()


def test_tensorboard_reads_what_metrics_csv_has_after_any_number_of_stops(tmp_path, new_run, data):
    run = new_run(tmp_path / "run", **SECTIONS)
    for stage, epoch in (("pretrain", 1), ("prune", 0), ("prune", 2), ("finetune", 2)):
        with pytest.raises(KeyboardInterrupt):
            train(run, data, StopAt(stage, epoch))
        run = RunDirectory.open(run.path)
    train(run, data)
    found = scalars(run.path)
    assert found == recorded(run.path, iterations=3)  # 40 images in batches of 16
    assert {stage for stage, _ in found} == {"pretrain", "prune", "finetune"}
    assert [step for step, _ in found["prune", "val_loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["prune", "iteration/lambda_max_running"]] == [0, 2, 3, 5, 6, 8]


def test_it_changes_nothing_else_and_is_there_while_the_run_goes_on(tmp_path, new_run, data):
    shown, plain = (new_run(tmp_path / name, **SECTIONS) for name in ("shown", "plain"))
    seen = []

    class Look(Callback):
        def on_recorded(self, loop, rows):
            seen.append(len(scalars(shown.path)[loop.stage, "val_loss"]))

    train(shown, data, Look())
    Stages(plain, data, callbacks=build_trackers(plain.config.tracking)).all()
    assert (shown.path / "metrics.csv").read_bytes() == (plain.path / "metrics.csv").read_bytes()
    assert seen == [1, 2, 1, 2, 3, 4, 1, 2]


def test_a_run_that_is_executed_writes_it_where_it_is_asked_for(tmp_path, settings, data):
    short = {stage: {"epochs": 1} for stage in ("pretrain", "prune", "finetune")}
    for asked in (True, False):
        tracking = {"tracking": {"tensorboard": asked}}
        config = settings(**SECTIONS | short | tracking)
        run = execute(config, tmp_path / str(asked), device="cpu", quiet=True, resume=False, data=data)
        assert (run.path / "tensorboard").exists() == asked
    assert scalars(tmp_path / "True") == recorded(tmp_path / "True", iterations=3)


def test_without_the_extra_the_run_is_refused_before_it_begins(settings, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 's2ap-diag\[tensorboard\]'"):
        prepare(settings(**SECTIONS), data)
