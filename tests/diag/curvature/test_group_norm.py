"""Without BatchNorm: lambda_max has one mode, and no 1/eps at dead channels, as long as their group has others."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_core.config import ObjectiveSettings
from s2ap_core.masks.masking import attach, scores
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.curvature import curvature
from s2ap_diag.curvature.loss_difference import loss_difference
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from tests.diag.commands.running import invoke
from tests.spectra import cross_entropy, dense_by_autograd
from tests.tiny import Tiny

EPS = (1e-3, 1e-4, 1e-5)


def network(groups: int, eps: float) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Channels 1 and 4 of six keep no weight; [24, 6] images."""
    torch.manual_seed(1)
    norm = nn.GroupNorm(groups, 6, eps=eps)
    model = attach(nn.Sequential(nn.Linear(6, 6, bias=False), norm, nn.Tanh(), nn.Linear(6, 3)).double(), keep=0.6)
    with torch.no_grad():
        scores(model)["0.scores"][[1, 4]] *= 1e-6
    return model, (torch.randn(24, 6).double(), torch.arange(24) % 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_dead_channels_have_the_variance_of_their_group_in_both_modes(groups: int) -> None:
    found = []
    for eps in EPS:
        model, batch = network(groups, eps)
        matrix = dense_by_autograd(model, batch, "running")
        modes = [curvature(model, cross_entropy, [batch], batch_norm=mode) for mode in ("running", "batch")]
        assert modes[0].lambda_max == modes[1].lambda_max
        assert [mode.batch_norm for mode in modes] == ["none", "none"]
        assert modes[0].dead_channels == 2
        assert modes[0].lambda_max == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-4)
        found.append(modes[0].lambda_max)
    assert found[2] < 1.05 * found[1]  # BatchNorm's eigenvalue is ten times as large at a tenth of eps
    assert loss_difference(model, cross_entropy, [batch], rho=0.01).batch_norm == "none"


def test_a_dead_channel_alone_in_its_group_has_the_root_of_eps_again() -> None:
    """So that the groups of the networks have several channels: with one each, nothing is gained."""
    model, batch = network(6, EPS[-1])
    images = batch[0].unsqueeze(2).repeat(1, 1, 4) * torch.linspace(0.5, 1.5, 4)  # a channel has four values

    class OnMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.layers[1](self.layers[0](x.transpose(1, 2)).transpose(1, 2)))
            return self.layers[3](x.transpose(1, 2).square()).mean(1)

    found = []
    for eps in EPS:
        model[1].eps = eps
        found.append(curvature(OnMaps(), cross_entropy, [(images, batch[1])]).lambda_max)
    assert found[2] > 5 * found[1] > 25 * found[0]


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(tmp_path / "x", attach(Tiny(norm="group"), 0.3).eval(), {"stage": "prune", "epoch": 0})


def test_sharpness_says_none_before_the_search_too(checkpoint, data) -> None:
    settings = SharpnessSettings(images=16, batch_size=16, rho=(), batch_norm="running")
    record = measure_sharpness(checkpoint, data, ObjectiveSettings(eps=0.1, steps=2), settings).record()
    assert record["batch_norm"] == "none"


def test_tracking_and_the_command_make_one_reading_of_both_modes(new_run, data, tiny_network, tmp_path) -> None:
    network, tracking = {"name": "tiny", "norm": "group"}, {"every": 1, "iterations": 2, "images": 8}
    run = new_run(tmp_path / "run", data={"name": "digits"}, network=network, tracking=tracking)
    Stages(run, data, callbacks=build_trackers(run.config.tracking)).all("prune")
    metrics = {line.split(",")[3] for line in (run.path / "metrics.csv").read_text().splitlines()}
    assert {"lambda_max_none", "lambda_max_live_none", "dead_share_none"} <= metrics
    assert not {m for m in metrics if m.endswith(("_running", "_batch"))}
    assert len(course.batch_norm_modes(run.config)) == 1
    small = ["--images", 16, "--method", "power", "--iterations", 1, "--no-loss-difference", "--json", "-"]
    modes = ["--batch-norm", "running", "--batch-norm", "batch"]
    (record,) = json.loads(invoke("sharpness", run.checkpoint("prune-best"), *small, *modes).stdout)
    assert record["batch_norm"] == "none"
