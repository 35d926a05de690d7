"""The curvature of a network against its dense Hessian, for each solver."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach
from s2ap_diag.curvature.curvature import curvature
from s2ap_diag.curvature.eigen import Lanczos, PowerIteration, Solver
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.pyhessian import PyHessian
from tests.spectra import LIVE, cross_entropy, dead_network, dense, dense_by_autograd, network

SOLVERS = (Lanczos, PowerIteration, PyHessian)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_dead_channels_make_lambda_max_one_over_eps_and_the_live_one_does_not_see_them(mode: str) -> None:
    found = []
    for eps in (1e-3, 1e-4, 1e-5):
        model, batch = dead_network(eps)
        matrix = dense_by_autograd(model, batch, mode)
        found.append(curvature(model, cross_entropy, [batch], batch_norm=mode))
        assert found[-1].lambda_max == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-4)
        assert found[-1].lambda_max_live == pytest.approx(np.linalg.eigvalsh(matrix[LIVE][:, LIVE])[-1], rel=1e-4)
        vector = np.linalg.eigh(matrix)[1][:, -1]
        assert found[-1].dead_share == pytest.approx((vector[~LIVE] ** 2).sum(), abs=1e-3)
        assert found[-1].dead_channels == 3
    # A step of a dead channel's score is divided by sqrt(eps), so that the curvature goes with 1/eps.
    for coarse, fine in pairwise(found):
        assert fine.lambda_max == pytest.approx(10 * coarse.lambda_max, rel=0.1)
        assert fine.lambda_max_live == pytest.approx(coarse.lambda_max_live, rel=0.02)
    assert found[-1].dead_share > 0.999
    assert found[-1].lambda_max > 1e3 * found[-1].lambda_max_live


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver_gives_both_spectra_of_the_whole_and_of_layers(kind: type[Solver]) -> None:
    model, batch = dead_network(eps=1e-2)
    matrix = dense_by_autograd(model, batch, "batch")
    solver = kind(iterations=300, tolerance=1e-5)
    found = curvature(model, cross_entropy, [batch], solver=solver, batch_norm="batch", by_layer="layer")
    first = np.arange(len(LIVE)) < 36
    for ours, ours_live, part in (
        (found.lambda_max, found.lambda_max_live, first | True),
        (found.layers["0"], found.layers_live["0"], first),
        (found.layers["3"], found.layers_live["3"], ~first),
    ):
        assert ours == pytest.approx(np.linalg.eigvalsh(matrix[part][:, part])[-1], rel=2e-3)
        assert ours_live == pytest.approx(np.linalg.eigvalsh(matrix[part & LIVE][:, part & LIVE])[-1], rel=2e-3)
    assert found.lambda_max_live < 0.5 * found.lambda_max
    assert found.residual_live < 1e-2
    assert found.solver == solver.name


def test_where_no_channel_is_dead_both_spectra_cost_one() -> None:
    model, batches = network()
    found = curvature(model, cross_entropy, batches, solver=PowerIteration(iterations=10))
    assert (found.dead_channels, found.dead_share) == (0, 0)
    assert found.lambda_max_live == found.lambda_max
    assert found.hvps == 2 * (11 + 2)  # and two for the symmetry defect, each over two batches


def test_a_network_whose_dominant_eigenvalue_is_negative() -> None:
    # f = tanh(w'x), loss (f - y)^2 / 2: sample i adds c_i x_i x_i' to the Hessian in w, where
    # c = f'^2 + (f - y) f'' is negative where f is far on the wrong side of y. Orthogonal samples, all of
    # one coordinate each, make the score Hessian diagonal.
    w = torch.tensor([[0.7, 0.2, 0.5]]).double()
    x, y = torch.eye(3).double(), torch.tensor([[-3.0], [0.2], [0.5]]).double()
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Tanh()).double()
    model[0].weight.data.copy_(w)
    attach(model, keep=1.0)
    f = torch.tanh(w[0])
    slope = 1 - f**2
    expected = w[0] ** 2 * (slope**2 + (f - y[:, 0]) * (-2 * f * slope)) / 3
    assert expected.min() < -expected.max() < 0

    def half_mse(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (m(batch[0]) - batch[1]).square().mean()

    for kind in SOLVERS:
        found = curvature(model, half_mse, [(x, y)], solver=kind(iterations=500, tolerance=1e-8))
        assert found.dominant_eigenvalue == pytest.approx(float(expected.min()), rel=1e-4)
        assert found.lambda_max == pytest.approx(float(expected.max()), rel=1e-3)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_curvature_leaves_model_and_generator_as_they_were_and_prints_nothing(
    kind: type[Solver], mode: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model, batches = network()
    model.train()
    cross_entropy(model, batches[0]).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    torch.set_warn_always(True)  # or torch's warnings would come once in a process
    curvature(model, cross_entropy, batches, batch_norm=mode, solver=kind(), by_layer="layer")
    torch.set_warn_always(False)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_the_two_batch_norm_modes_are_two_metrics() -> None:
    model, batches = network()
    running = curvature(model, cross_entropy, batches, batch_norm="running")
    batch = curvature(model, cross_entropy, batches, batch_norm="batch")
    assert (running.batch_norm, batch.batch_norm) == ("running", "batch")
    assert abs(running.lambda_max - batch.lambda_max) > 0.1 * running.lambda_max


def test_layers_and_blocks_are_the_diagonal_blocks_sharpest_first() -> None:
    model, batches = network()
    whole = dense(ScoreHessian(model, cross_entropy, batches))
    names = ["0.0.0", "0.0.3", "0.1.0", "0.1.3", "1"]
    edges = np.cumsum([0, 36, 36, 36, 36, 18])
    layers = {
        name: np.linalg.eigvalsh(whole[a:b, a:b])[-1] for name, a, b in zip(names, edges[:-1], edges[1:], strict=True)
    }
    blocks = {
        "0.0": np.linalg.eigvalsh(whole[:72, :72])[-1],
        "0.1": np.linalg.eigvalsh(whole[72:144, 72:144])[-1],
        "1": layers["1"],
    }
    for by, expected in (("layer", layers), ("block", blocks)):
        found = curvature(model, cross_entropy, batches, by_layer=by)
        assert found.layers == pytest.approx(expected, rel=1e-4)
        assert list(found.layers) == sorted(expected, key=lambda name: -expected[name])
        assert max(found.layer_residuals.values()) < 1e-3


@pytest.mark.parametrize("sizes", [[12] * 16, [20] * 8 + [6] * 8])
def test_the_error_of_lambda_max_is_that_of_a_jackknife_over_batches(sizes: list[int]) -> None:
    model, _ = dead_network(eps=1e-2)
    rng = torch.Generator().manual_seed(2)
    batches = [(torch.randn(n, 6, generator=rng).double(), torch.randint(0, 3, (n,), generator=rng)) for n in sizes]
    found = curvature(model, cross_entropy, batches)
    alone = np.stack([dense_by_autograd(model, batch, "running") for batch in batches])
    for ours, part in ((found, LIVE | True), (found, LIVE)):
        error = ours.lambda_max_standard_error if part.all() else ours.lambda_max_live_standard_error

        def largest(chosen: np.ndarray, part: np.ndarray = part) -> float:
            mean = np.average(alone[chosen], axis=0, weights=np.array(sizes)[chosen])
            return np.linalg.eigvalsh(mean[part][:, part])[-1]

        everyone = np.arange(len(sizes))
        left_out = np.array([largest(everyone[everyone != b]) for b in everyone])
        jackknife = np.sqrt((len(sizes) - 1) / len(sizes) * ((left_out - left_out.mean()) ** 2).sum())
        assert error == pytest.approx(jackknife, rel=0.15)
    # The batches' own largest eigenvalues spread otherwise: each at an eigenvector of its own.
    own = np.linalg.eigvalsh(alone)[:, -1]
    assert own.mean() > 1.1 * found.lambda_max


def test_the_spread_of_the_quotients_weighs_batches_by_their_samples() -> None:
    model, batches = network()
    matrices = [dense(ScoreHessian(model, cross_entropy, [batch])) for batch in batches]
    top = np.linalg.eigh((2 * matrices[0] + matrices[1]) / 3)[1][:, -1]
    first, second = (top @ matrix @ top for matrix in matrices)
    for kind in (Lanczos, PowerIteration):
        found = curvature(model, cross_entropy, batches, solver=kind(iterations=50, tolerance=1e-4))
        assert found.converged
        # Two values q at weights w and 1 - w deviate by sqrt(w (1 - w)) |q1 - q2|.
        assert found.lambda_max_std == pytest.approx(2**0.5 * (2 / 9) ** 0.5 * abs(first - second), rel=1e-2)
        assert found.lambda_max_standard_error == pytest.approx(2 * (2 / 9) * abs(first - second), rel=1e-2)
    assert (found.batches, found.batch_size, found.n_scores) == (2, 16, 162)
    single = curvature(model, cross_entropy, batches[:1])
    assert single.lambda_max_std is None
    assert single.symmetry_defect < 1e-12


def test_an_unknown_part_is_refused() -> None:
    model, batches = network()
    with pytest.raises(InputError, match="by_layer = 'stage'"):
        curvature(model, cross_entropy, batches, by_layer="stage")  # type: ignore[arg-type]
