"""Optimizers and schedules: against closed forms and torch's own, and resumed to the last bit."""

import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from s2ap_core.config import PruneSettings, StageSettings
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.masking import attach, fix_masks, scores
from s2ap_core.presets.effects import check_sense
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.iteration import iterate
from s2ap_core.training.loop import Callback
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import (
    build_optimizer,
    build_schedule,
    normalize_score_gradient,
    searched_parameters,
)
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network")

FIELD = {
    "optimizer": "adamw", "lr": 0.01, "lr_warmup": 1, "lr_step": "iteration", "clip": 0.5, "decay_norms": False,
    "weight_decay": 0.05, "epochs": 3, "batch_size": 16,
}  # fmt: skip
"""What transformers are trained with."""

EVERYTHING = {
    "pretrain": FIELD,
    "prune": FIELD | {"epochs": 4},
    "finetune": FIELD | {"awp": True, "gamma": 0.01},
    "minimizer": {"name": "s2ap", "gamma": 0.2, "warmup": 1, "eta_z": "lr"},
}


def rates(settings: StageSettings, iterations: int) -> list[float]:
    """The learning rate of each iteration of a stage."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=settings.lr)
    schedule = build_schedule(optimizer, settings, iterations)
    found = []
    for _ in range(settings.epochs):
        for iteration in range(iterations):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if settings.lr_step == "iteration" or iteration == iterations - 1:
                schedule.step()
    return found


# --- the schedule ---


@pytest.mark.parametrize(("lr", "epochs"), [(0.1, 100), (0.01, 7), (0.3, 1), (0.0123, 20)])
def test_the_default_is_a_half_cosine_by_epoch_to_the_last_bit(lr, epochs):
    expected = [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs) for _ in range(3)]
    assert rates(StageSettings(lr=lr, epochs=epochs), 3) == expected


@pytest.mark.parametrize(("step", "unit"), [("epoch", 1), ("iteration", 5)])
def test_with_a_warmup_it_is_torchs_linear_rise_and_cosine(step, unit):
    settings = StageSettings(lr=0.2, epochs=8, lr_warmup=3, lr_step=step)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.2)
    parts = [LinearLR(optimizer, 1 / (3 * unit + 1), total_iters=3 * unit), CosineAnnealingLR(optimizer, 5 * unit)]
    theirs, expected = SequentialLR(optimizer, parts, milestones=[3 * unit]), []
    for _ in range(8 * unit):
        expected += [optimizer.param_groups[0]["lr"]] * (5 // unit)
        optimizer.step()
        theirs.step()
    found = rates(settings, 5)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found[0] == pytest.approx(0.2 / (3 * unit + 1))
    assert max(found) == pytest.approx(0.2)


class Watch(Callback):
    """The learning rate of each iteration, as the optimizer has it."""

    def __init__(self):
        self.seen: list[tuple[str, float]] = []

    def on_iteration(self, loop, step):
        self.seen.append((loop.stage, loop.optimizer.param_groups[-1]["lr"]))


@pytest.mark.parametrize("training", [FIELD, {"epochs": 3, "batch_size": 16}, FIELD | {"lr_step": "epoch"}])
def test_a_stage_steps_by_its_schedule_and_writes_each_epochs_last_rate(training, tmp_path, new_run, data):
    run, watch = new_run(tmp_path / "run", pretrain=training), Watch()
    Stages(run, data, callbacks=[watch]).pretrain()
    expected = rates(run.config.pretrain, 3)
    assert [lr for _, lr in watch.seen] == expected
    rows = (line.split(",") for line in (run.path / "metrics.csv").read_text().splitlines())
    assert [float(row[4]) for row in rows if row[3] == "lr"] == expected[2::3]


# --- resuming ---


class Stop(Callback):
    """Interrupts a stage in mid-epoch."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.at = (stage, epoch, 1)

    def on_iteration(self, loop, step):
        if (loop.stage, loop.epoch, loop.iteration) == self.at:
            raise KeyboardInterrupt


def tensors_of(run: Path) -> dict[str, dict[str, bytes]]:
    files = chain((run / "ckpt").iterdir(), (run / "masks").iterdir())
    return {f.name: {n: t.numpy().tobytes() for n, t in load_tensors(f)[0].items()} for f in files}


def test_a_resumed_stage_goes_on_with_optimizer_and_schedule_to_the_last_bit(tmp_path, new_run, data):
    whole = new_run(tmp_path / "whole", **EVERYTHING)
    Stages(whole, data).all()
    run = new_run(tmp_path / "run", **EVERYTHING)
    for stage, epoch in (("pretrain", 2), ("pretrain", 3), ("prune", 2), ("prune", 4), ("finetune", 3)):
        with pytest.raises(KeyboardInterrupt):
            Stages(run, data, callbacks=[Stop(stage, epoch)]).all()
        run = RunDirectory.open(run.path)
    Stages(run, data).all()
    assert tensors_of(run.path) == tensors_of(whole.path)
    assert (run.path / "metrics.csv").read_bytes() == (whole.path / "metrics.csv").read_bytes()
    tensors, header = load_tensors(run.state("prune"))
    assert {name.split(".")[2] for name in tensors if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert header["schedule"]["last_epoch"] == 12


# --- what is stepped, and how far ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["tiny", "vit"])
def test_norms_and_biases_are_spared_the_decay(narrow, optimizer, masked, name):
    model = fix_masks(attach(narrow(name), 0.5)) if masked else narrow(name)
    settings = StageSettings(optimizer=optimizer, lr=0.1, weight_decay=0.5, decay_norms=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    stepped = build_optimizer(model, list(model.parameters()), settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepped.step()
    # Of a network's parameters those of norms and the biases alone have one axis.
    assert any(p.ndim == 1 for p in before.values())
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] * (1 if p.ndim == 1 else 1 - 0.1 * 0.5), msg=n)


def test_the_search_spares_norms_the_decay_and_steps_scores_alike_however_they_are_grouped(narrow):
    for decay_norms in (True, False):
        settings = PruneSettings(lr=0.1, momentum=0.0, weight_decay=0.5, decay_norms=decay_norms)
        model = attach(narrow(), 0.5)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = build_optimizer(model, searched_parameters(model, settings), settings)
        tensors = list(scores(model).values())
        normalize_score_gradient(optimizer, tensors)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        count = sum(t.numel() for t in tensors)
        for n, p in model.named_parameters():
            decay = 0.05 if decay_norms else 0.0
            moved = before[n] - 0.1 / math.sqrt(count) if n.endswith("scores") else (1 - decay) * before[n] - 0.1
            torch.testing.assert_close(p.detach(), moved if p.requires_grad else before[n], msg=n)


def test_clipping_cuts_the_gradients_norm_and_leaves_a_shorter_one(narrow, batch, settings):
    x, y = batch
    steps = {}
    for clip in (None, 1e-3, 1e6):
        model = narrow().train()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        objective = build_objective(settings().objective)
        iterate(model, x, y, objective=objective, optimizer=optimizer, generator=torch.Generator(), clip=clip)
        pairs = zip(model.parameters(), before, strict=True)
        steps[clip] = torch.cat([(p.detach() - old).flatten() for p, old in pairs]).double()
    torch.testing.assert_close(steps[1e6], steps[None])
    assert steps[None].norm() > 0.1
    torch.testing.assert_close(steps[1e-3], 1e-3 * steps[None] / steps[None].norm(), rtol=1e-3, atol=1e-6)


# --- what contradicts itself ---


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"prune": {"epochs": 4, "lr_warmup": 4}}, "prune.lr_warmup = 4 leaves nothing of prune.epochs = 4"),
        ({"finetune": {"epochs": 1, "lr_warmup": 2}}, "finetune.lr_warmup = 2 leaves nothing of finetune.epochs = 1"),
        (
            {"prune": {"optimizer": "adamw"}, "minimizer": {"update": "normalized"}},
            "minimizer.update = normalized is a plain step .* prune.optimizer = adamw",
        ),
        (
            {"prune": {"clip": 1.0}, "minimizer": {"update": "normalized"}},
            "minimizer.update = normalized is a plain step .* prune.clip = 1.0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections, said, settings):
    with pytest.raises(InputError, match=said):
        check_sense(settings(**sections), "mine.toml")
