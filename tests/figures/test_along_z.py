"""Curvature along z on a run of seconds: against two losses taken apart and the dense Hessian of the masked weights."""

import copy

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch.func import functional_call, hessian

from figures.along_z import command, read_along
from s2ap_core.masks.masking import bake, masks, scores
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.adversary import Adversary, objective_of
from s2ap_diag.reading.source import Source

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture
def searched(tmp_path, new_run, data, monkeypatch):
    """The checkpoints of a search of three epochs on ``data``."""
    run = new_run(tmp_path / "run", minimizer={"name": "s2ap", "gamma": 0.3, "warmup": 1})
    Stages(run, data).all(until="prune")
    monkeypatch.setattr(Source, "data", lambda self, checkpoint: data)
    return run.path / "ckpt"


@pytest.fixture
def world(searched, data):
    checkpoint = Source().open(searched / "prune-epoch-002.safetensors")
    checkpoint.model.double()
    adversary = Adversary(build_objective(objective_of(checkpoint)), 0)
    (batch,) = adversary.batches(checkpoint.model.float(), data, 16, 16)
    checkpoint.model.double()
    return checkpoint, (batch[0].double(), batch[1].double(), batch[2]), adversary.objective


def test_without_a_flip_nothing_is_felt_and_the_surrogate_curves_all_the_same(world):
    checkpoint, batch, _ = world
    found = read_along(checkpoint, batch, 1e-9)
    assert (found["flips"], found["loss_rise"], found["secant"]) == (0, 0, 0)
    assert found["surrogate"] != 0


def test_rise_and_surrogate_are_those_computed_apart(world):
    checkpoint, batch, objective = world
    model = checkpoint.model
    found = read_along(checkpoint, batch, 0.3)
    twin = copy.deepcopy(model).train()
    gradient = torch.autograd.grad(objective.loss(twin, *batch), list(scores(twin).values()))
    z = [0.3 * s.norm() * g / g.norm() for s, g in zip(scores(model).values(), gradient, strict=True)]
    moved = copy.deepcopy(model).train()
    with torch.no_grad():
        for s, z_l in zip(scores(moved).values(), z, strict=True):
            s.add_(z_l)
    flips = sum(int((a ^ b).sum()) for a, b in zip(masks(moved).values(), masks(model).values(), strict=True))
    assert found["flips"] == flips > 0
    rise = objective.loss(moved, *batch) - objective.loss(copy.deepcopy(model).train(), *batch)
    assert found["loss_rise"] == pytest.approx(rise.item(), rel=1e-9)
    # The surrogate: w * (m + t z sign(s)) at t = 0, twice differentiated in t.
    plain, steps = bake(model).train(), {}
    for name, (layer, s), z_l in zip(masks(model), scores(model).items(), z, strict=True):
        raw = model.get_submodule(layer.removesuffix("scores").removesuffix(".")).parametrizations.weight.original
        steps[name] = (raw * z_l * s.sign()).detach()
    held = {name: p.detach() for name, p in plain.named_parameters()} | {n: b.clone() for n, b in plain.named_buffers()}

    def loss(t):
        weights = {name: held[name] + t * steps[name] for name in steps}
        network = lambda x: functional_call(plain, {**{k: v.clone() for k, v in held.items()}, **weights}, (x,))  # noqa: E731
        log_p, log_p_adv = (torch.log_softmax(network(x), 1) for x in batch[:2])
        divergence = torch.nn.functional.kl_div(log_p_adv, log_p, reduction="batchmean", log_target=True)
        return torch.nn.functional.nll_loss(log_p, batch[2]) + 6.0 * divergence

    curvature = hessian(loss)(torch.zeros((), dtype=torch.float64)) / sum(z_l.square().sum() for z_l in z)
    assert found["surrogate"] == pytest.approx(curvature.item(), rel=1e-6)


def test_the_command_reads_every_epoch(searched, tmp_path):
    out = tmp_path / "z.csv"
    result = CliRunner().invoke(command, [str(searched), "--images", "16", "--gamma", "0.3", "--csv", str(out)])
    assert result.exit_code == 0, result.output
    assert pd.read_csv(out).epoch.tolist() == [0, 1, 2, 3]
