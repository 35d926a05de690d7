"""The loss around scores: against masks and losses made without the code that is tested."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import masks
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.perturbation import Perturbation
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import landscape
from s2ap_diag.curvature.adversary import Adversary
from s2ap_diag.curvature.curvature import curvature
from s2ap_diag.curvature.dead import dead_scores
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.slices import Slice, targets
from s2ap_diag.curvature.tracking import batch_loss
from tests.diag.commands.running import invoke

SMALL = ["--images", 16, "--batch-size", 16, "--points", 2, "--flips", 0.05]


@pytest.fixture(scope="module")
def run(tmp_path_factory, new_run, data, tiny_network):
    run = new_run(tmp_path_factory.mktemp("runs") / "run", evaluation={"stages": ["prune"], "n": 12})
    Stages(run, data).all()
    return run


@pytest.fixture
def best(run, tmp_path, data, monkeypatch):
    """The search's result in a copy of the run, on the images that it was made on."""
    monkeypatch.setattr("s2ap_diag.reading.source.load", lambda *a, **k: data)
    return Path(shutil.copytree(run.path, tmp_path / "run")) / "ckpt" / "prune-best.safetensors"


def moved(model, step):
    """A copy of a network whose scores are moved by a flat vector."""
    there = copy.deepcopy(model)
    at = 0
    for mask in score_masks(there).values():
        n = mask.scores.numel()
        mask.scores.data += step[at : at + n].view_as(mask.scores)
        at += n
    return there.eval()


def flipped(a, b):
    return sum(int((one ^ other).sum()) for one, other in zip(masks(a).values(), masks(b).values(), strict=True))


@pytest.fixture
def plane(run, data):
    checkpoint = load_checkpoint(run.result("prune"))
    adversary = Adversary(build_objective(run.config.objective), 0)
    batches = adversary.batches(checkpoint.model, data, 40, 20)
    return Slice(checkpoint.model, batch_loss(adversary.objective), batches, "running"), adversary, batches


def test_the_plane_is_that_of_sharpness_and_of_the_search(plane):
    """The eigenvalue is that of `sharpness`, the vector its own; z by the class that the search perturbs with."""
    slice_, adversary, batches = plane
    model = slice_.model
    found = slice_.directions(Lanczos(iterations=200, tolerance=1e-7))
    assert found.converged
    expected = curvature(model, slice_.loss, batches, solver=Lanczos(iterations=200, tolerance=1e-7))
    assert found.lambda_max_live == pytest.approx(expected.lambda_max_live, rel=1e-4)
    with ScoreHessian(model, slice_.loss, batches) as hessian:
        product = hessian.matvec(found.eigenvector)
    assert float(found.eigenvector @ product) == pytest.approx(found.lambda_max_live, rel=1e-4)
    live = ~dead_scores(model).where
    assert found.eigenvector[~live].abs().max() == 0 if (~live).any() else True
    assert float(found.eigenvector.norm()) == pytest.approx(1)
    perturbation = Perturbation(copy.deepcopy(model).eval(), [], radius=Relative(1.0))
    perturbation.layers = score_layers(perturbation.model)

    def loss():
        return sum(adversary.objective.loss(perturbation.model, *batch) for batch in batches) / len(batches)

    optimizer = torch.optim.SGD([layer.tensor for layer in perturbation.layers], lr=0.1)
    with perturbation.applied(loss, optimizer, 0):
        z = torch.cat([part.flatten() for part in perturbation.z])
    torch.testing.assert_close(found.z, z, rtol=1e-4, atol=1e-6)


def test_axes_count_the_bits_that_a_step_flips(plane):
    slice_, *_ = plane
    torch.manual_seed(0)
    direction = torch.randn_like(slice_.landscape.origin)
    wanted = [2, 10, 40]
    axis = slice_.axis(direction, wanted)
    assert len(axis.steps) == 7
    assert axis.steps[3] == axis.flips[3] == axis.rho[3] == 0
    scores = torch.cat([mask.scores.detach().flatten() for mask in score_masks(slice_.model).values()])
    for step, count, rho in zip(axis.steps, axis.flips, axis.rho, strict=True):
        assert flipped(slice_.model, moved(slice_.model, step * direction)) == abs(count)
        assert rho == pytest.approx(step * float(direction.norm() / scores.norm()))
    for place, least in zip((4, 5, 6), wanted, strict=True):
        assert axis.flips[place] >= least
        assert flipped(slice_.model, moved(slice_.model, 0.97 * axis.steps[place] * direction)) < least
    still = slice_.axis(torch.zeros_like(direction), wanted)
    assert np.isnan(still.steps).sum() == 6
    assert targets(1000, 0.01, 5) == [2, 4, 6, 8, 10]


def test_losses_are_those_of_the_moved_network(best, run, data):
    result = invoke("landscape", best, *SMALL, "--json", "-")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)
    (kept,) = best.parent.parent.joinpath("landscape").glob("*-plane.npz")
    with np.load(kept) as arrays:
        v, z = (torch.from_numpy(arrays[name]) for name in ("eigenvector", "z"))
    model = load_checkpoint(best).model
    adversary = Adversary(build_objective(run.config.objective), 0)
    (batch,) = adversary.batches(model, data, 16, 16)
    steps = [record["axes"][name]["steps"] for name in ("eigenvector", "z")]
    for row in (0, 2, 3):
        for column in (1, 2, 4):
            there = moved(model, steps[0][column] * v + steps[1][row] * z)
            with torch.no_grad():
                expected = float(adversary.objective.loss(there, *batch))
            assert record["losses"][row][column] == pytest.approx(expected, rel=1e-5)
            assert record["flips"][row][column] == flipped(model, there)
    assert record["loss"] == record["losses"][2][2]
    entries = sum(mask.numel() for mask in masks(model).values())
    assert max(record["axes"]["z"]["flips"]) >= 0.05 * entries - 2


def test_what_is_measured_is_not_measured_again(best, monkeypatch, tmp_path):
    """A call that ends in the middle is gone on with, to the same losses; a complete one makes no pass."""
    aside = Path(shutil.copytree(best.parent.parent, tmp_path / "aside")) / "ckpt" / best.name
    whole = invoke("landscape", aside, *SMALL, "--json", "-")
    assert "1 x 25 points x 1 batch of 16: 25 forward passes; before them at most 64" in whole.stderr
    evaluate, calls = Slice.value, []

    def limited(self, step):
        if len(calls) == 12:
            raise KeyboardInterrupt
        calls.append(step)
        return evaluate(self, step)

    monkeypatch.setattr(Slice, "value", limited)
    assert invoke("landscape", best, *SMALL).exit_code == 130
    calls.clear()
    monkeypatch.setattr(Slice, "value", lambda self, step: calls.append(step) or evaluate(self, step))
    rest = invoke("landscape", best, *SMALL, "--json", "-")
    assert "15 forward passes left, 10 are measured" in rest.stderr  # two whole rows
    assert len(calls) == 15
    ours, theirs = (json.loads(result.stdout)[0] for result in (rest, whole))
    assert {**ours, "checkpoint": ""} == {**theirs, "checkpoint": ""}
    calls.clear()
    monkeypatch.setattr(landscape, "batches_of", None)  # no image is attacked either
    again = invoke("landscape", best, *SMALL, "--json", "-")
    assert again.stdout == rest.stdout
    assert not calls
    assert invoke("landscape", best, "--images", 8).exit_code != 0  # other settings are measured anew


def test_arms_are_drawn_at_one_scale_and_tabulated(best, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(best.with_name("prune-epoch-001.safetensors"), other)
    refused = invoke("landscape", other, *SMALL)
    assert refused.exit_code == 2
    assert "--out" in refused.stderr
    out = ["--out", tmp_path / "kept", "--plot", tmp_path / "p.png", "--csv", tmp_path / "c.csv"]
    result = invoke("landscape", best, other, *SMALL, *out)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    rows = pd.read_csv(tmp_path / "c.csv")
    assert len(rows) == 50
    assert {"flips_eigenvector", "rho_eigenvector", "flips_z", "rho_z", "flips", "loss"} < set(rows)
    dense = best.with_name("pretrain.safetensors")
    assert "has no scores" in invoke("landscape", dense, *SMALL).stderr
    assert isinstance(load_checkpoint(best).model, nn.Module)


@pytest.mark.parametrize(("option", "place"), [("--csv", "kept"), ("--csv", "-"), ("--plot", "-")])
def test_an_output_that_is_no_file_is_refused_before_anything_is_measured(option, place, best, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = invoke("landscape", best, *SMALL, "--out", "kept", option, place)
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert f"{option} {place}" in refused.stderr
    assert not list(tmp_path.glob("kept"))


def test_nan_is_in_no_range():
    for command in (("landscape", "x", "--flips"), ("sharpness", "x", "--rho"), ("inspect", "x", "--gamma")):
        refused = invoke(*command, "nan")
        assert refused.exit_code == 2
        assert f"'{command[-1]}': nan is not in the range" in refused.stderr
