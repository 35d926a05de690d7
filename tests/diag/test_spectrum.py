"""Eigenvalues, trace and density against NumPy, closed forms and PyHessian."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from pyhessian import hessian as PyHessian
from torch import Tensor, nn
from torch.func import functional_call

from s2ap_core.errors import InputError
from s2ap_core.scores import attach, bake, masked_layers, scores
from s2ap_diag.hessian import ScoreHessian
from s2ap_diag.spectrum import (
    Projected,
    curvature,
    lambda_max,
    lanczos,
    power_iteration,
    spectral_density,
    standard_deviation,
    standard_error,
    trace,
)


@dataclass
class Matrix:
    """A dense symmetric matrix that knows how often it was multiplied with."""

    entries: Tensor
    products: int = 0

    def __post_init__(self) -> None:
        self.n, self.dtype, self.device = len(self.entries), self.entries.dtype, self.entries.device

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.entries @ v


def with_eigenvalues(values: list[float] | Tensor, seed: int = 0) -> Matrix:
    torch.manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    return Matrix(q @ torch.diag(values) @ q.T)


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two blocks of two layers, and batches of 16 and 8."""
    torch.manual_seed(0)

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6))

    blocks = nn.Sequential(block(), block())
    model = nn.Sequential(blocks, nn.Linear(6, 3)).double()
    x, y = torch.randn(24, 6).double(), torch.arange(24) % 3
    return attach(model, keep=0.5), [(x[:16], y[:16]), (x[16:], y[16:])]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def dense(op: ScoreHessian) -> np.ndarray:
    return torch.stack([op.matvec(e) for e in torch.eye(op.n, dtype=op.dtype)]).numpy()


def dense_by_autograd(model: nn.Module, batch: tuple[Tensor, Tensor], mode: str) -> np.ndarray:
    """diag(w) H diag(w) with H the Hessian in the masked weights of the plain network."""
    plain = bake(model).train(mode == "batch")
    names = [f"{layer}.weight" for layer in masked_layers(model)]
    masked = [plain.get_parameter(name).detach() for name in names]
    w = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.endswith("original")])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([m.numel() for m in masked])
        held = {name: part.view(m.shape) for name, part, m in zip(names, parts, masked, strict=True)}
        return F.cross_entropy(functional_call(plain, held, (batch[0],)), batch[1])

    hessian = torch.autograd.functional.hessian(loss, torch.cat([m.flatten() for m in masked]))
    signs = torch.cat([mask.scores.detach().sign().flatten() for mask in masked_layers(model).values()])
    return ((w * signs)[:, None] * hessian * (w * signs)).numpy()


def test_power_iteration_makes_the_paper_s_steps() -> None:
    # Eq. 10 and 11 written out in NumPy.
    op = with_eigenvalues([4.0, 3.0, 1.0, -2.0])
    a, v = op.entries.numpy(), np.array([1.0, 2.0, -1.0, 0.5])
    pair = power_iteration(op, iterations=10, start=torch.from_numpy(v))
    for _ in range(10):
        v = a @ v / np.linalg.norm(a @ v)
    value = v @ a @ v
    assert pair.value == pytest.approx(value, rel=1e-12)
    assert pair.residual == pytest.approx(np.linalg.norm(a @ v - value * v) / value, rel=1e-9)
    np.testing.assert_allclose(pair.product.numpy(), a @ pair.vector.numpy())
    assert pair.hvps == op.products == 11
    assert not pair.converged  # (3/4)^10 leaves six per cent


def test_power_iteration_stops_at_its_tolerance_and_a_good_start_saves_products() -> None:
    op = with_eigenvalues([10.0, 5.0, 1.0])
    cold = power_iteration(op, iterations=500, tolerance=1e-6)
    assert cold.converged
    assert cold.residual <= 1e-6
    assert cold.value == pytest.approx(10, rel=1e-6)
    warm = power_iteration(op, iterations=500, tolerance=1e-6, start=cold.product)
    assert warm.hvps == 1 < cold.hvps


def test_the_residual_bounds_the_error() -> None:
    op = with_eigenvalues(torch.linspace(-3, 7, 40))
    for iterations in (1, 3, 10, 30):
        pair = power_iteration(op, iterations=iterations)
        nearest = np.abs(np.linspace(-3, 7, 40) - pair.value).min()
        assert nearest <= pair.residual * abs(pair.value)


def test_a_dominant_eigenvalue_that_is_negative_is_told_from_lambda_max() -> None:
    op = with_eigenvalues([-8.0, 3.0, 1.0, -1.0])
    assert power_iteration(op, iterations=200).value == pytest.approx(-8)
    for method, options in (("power", {"iterations": 300, "tolerance": 1e-8}), ("lanczos", {})):
        op.products = 0
        found = lambda_max(op, method=method, **options)
        assert found.dominant_eigenvalue == pytest.approx(-8)
        assert found.lambda_max == pytest.approx(3)
        assert found.converged
        assert found.hvps == op.products
    first = lambda_max(op, method="power", iterations=100)
    again = lambda_max(op, method="power", iterations=300, tolerance=1e-8, start=first)
    assert again.hvps <= 6
    assert again.lambda_max == pytest.approx(3)


def test_by_default_lambda_max_is_found_beside_a_larger_negative_eigenvalue() -> None:
    # Ten products of power iteration are spent on the bulk at the lower end: 0.05 or so where 0.8 is right.
    op = with_eigenvalues([0.8, *torch.linspace(-0.5, 0.5, 60), *torch.linspace(-10, -9, 10)])
    found, paper = lambda_max(op), lambda_max(op, method="power")
    assert found.lambda_max == pytest.approx(0.8, rel=1e-6)
    assert found.dominant_eigenvalue == pytest.approx(-10, rel=1e-3)
    assert found.converged
    assert abs(paper.lambda_max - 0.8) > 0.2
    assert not paper.converged


def test_a_projected_operator_is_the_principal_submatrix() -> None:
    op = with_eigenvalues([-9.0, -4.0, -1.0, 2.0, 3.0, 6.0])
    onto = torch.tensor([True, False, True, True, False, True])
    block = Projected(op, onto)
    expected = op.entries[onto][:, onto]
    torch.testing.assert_close(torch.stack([block.matvec(e) for e in torch.eye(4).double()]), expected)
    assert (block.n, op.products) == (4, 4)
    v = torch.randn(4).double()
    assert torch.equal(block.restrict(block.expand(v)), v)
    assert block.expand(v)[~onto].count_nonzero() == 0
    # Zeros in the other places would add the eigenvalue 0, which none of a negative block's is.
    negative = Projected(with_eigenvalues([-9.0, -4.0, -3.0]), torch.tensor([True, True, False]))
    top = float(torch.linalg.eigvalsh(negative.op.entries[:2, :2])[-1])
    assert lambda_max(negative).lambda_max == pytest.approx(top, rel=1e-9)
    assert lambda_max(negative, method="power", iterations=100).lambda_max == pytest.approx(top, rel=1e-4)
    assert top < -1


def dead_network(eps: float = 1e-5) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Two of six channels before BatchNorm keep no weight, and one output of the last layer; [24, 6] images."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6, eps=eps), nn.Tanh(), nn.Linear(6, 3))
    attach(model.double(), keep=0.6)
    with torch.no_grad():
        for layer, rows in (("0", [1, 4]), ("3", [2])):
            scores(model)[f"{layer}.scores"][rows] *= 1e-6
    # As after a long search: a channel that is 0 in every batch.
    model[1].running_mean[[1, 4]], model[1].running_var[[1, 4]] = 0.0, 0.0
    return model, (torch.randn(24, 6).double(), torch.arange(24) % 3)


LIVE = np.r_[[i not in (1, 4) for i in range(6) for _ in range(6)], [i != 2 for i in range(3) for _ in range(6)]]


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


@pytest.mark.parametrize("method", ["lanczos", "power", "pyhessian"])
def test_every_method_gives_both_spectra_of_the_whole_and_of_layers(method: str) -> None:
    model, batch = dead_network(eps=1e-2)
    matrix = dense_by_autograd(model, batch, "batch")
    options = {"iterations": 300, "tolerance": 1e-5, "batch_norm": "batch", "by_layer": "layer"}
    found = curvature(model, cross_entropy, [batch], method=method, **options)
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


def test_where_no_channel_is_dead_both_spectra_cost_one() -> None:
    model, batches = network()
    found = curvature(model, cross_entropy, batches, method="power", iterations=10)
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

    for method in ("power", "lanczos", "pyhessian"):
        found = curvature(model, half_mse, [(x, y)], method=method, iterations=500, tolerance=1e-8)
        assert found.dominant_eigenvalue == pytest.approx(float(expected.min()), rel=1e-4)
        assert found.lambda_max == pytest.approx(float(expected.max()), rel=1e-3)


def test_lanczos_finds_both_ends_and_bounds_its_errors() -> None:
    values = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([20.0, 9.0, 8.5, -5.0])])
    op = with_eigenvalues(values)
    found = lanczos(op, k=3, iterations=100, tolerance=1e-6)
    assert [pair.value for pair in found.largest] == pytest.approx([20, 9, 8.5], rel=1e-8)
    assert found.smallest.value == pytest.approx(-5, rel=1e-4)
    assert found.hvps == op.products < 60
    for pair in (*found.largest, found.smallest):
        a_v = op.entries @ pair.vector
        assert float(pair.vector.norm()) == pytest.approx(1)
        torch.testing.assert_close(pair.product, a_v)
        true = float((a_v - pair.value * pair.vector).norm()) / abs(pair.value)
        assert true == pytest.approx(pair.residual, rel=1e-3, abs=1e-10)


def test_lanczos_goes_on_until_a_dominant_eigenvalue_at_the_lower_end_has_converged() -> None:
    found = lanczos(with_eigenvalues([20.0, *torch.linspace(-30, -29, 50)]), iterations=50, tolerance=1e-6)
    assert found.smallest.residual <= 1e-6
    assert found.smallest.value == pytest.approx(-30, rel=1e-9)
    assert found.hvps < 50


def test_lanczos_keeps_its_basis_orthogonal_where_the_plain_recurrence_makes_ghosts() -> None:
    values = torch.cat([torch.linspace(0, 1, 100), torch.tensor([1e4])])
    found = lanczos(with_eigenvalues(values), k=3, iterations=80, tolerance=None)
    second, third = found.largest[1].value, found.largest[2].value
    assert 0.99 < second <= 1 + 1e-9  # a ghost would be a second copy of 1e4
    assert third < second


@pytest.mark.parametrize("values", [[0.0] * 5, [2.0] * 5, [3.0, 0.0, 0.0, 0.0, 0.0]])
def test_lanczos_stops_when_the_space_is_exhausted(values: list[float]) -> None:
    op = with_eigenvalues(values)
    found = lanczos(op, k=4, iterations=50)
    assert found.largest[0].value == pytest.approx(max(values), abs=1e-12)
    assert found.hvps == op.products <= 5
    assert power_iteration(op, iterations=5).value == pytest.approx(max(values), abs=1e-12)


def test_trace_lies_within_its_standard_errors_and_is_exact_for_a_diagonal_matrix() -> None:
    op = with_eigenvalues(torch.linspace(-1, 4, 50))
    found = trace(op, probes=200, seed=3)
    assert abs(found.value - 75) < 4 * found.standard_error
    # Var z'Az = 2 (|A|^2 - |diag A|^2) for random signs.
    variance = 2 * float(op.entries.square().sum() - op.entries.diag().square().sum())
    assert found.standard_error == pytest.approx((variance / 200) ** 0.5, rel=0.2)
    assert found.hvps == op.products == 200
    assert trace(Matrix(torch.diag(torch.arange(5.0))), probes=1).value == 10
    assert trace(op, probes=1).standard_error is None


def test_density_integrates_to_one_and_knows_mean_and_masses() -> None:
    values = torch.cat([torch.linspace(-0.5, 0.5, 140), torch.linspace(9, 11, 60)])
    op = with_eigenvalues(values)
    found = spectral_density(op, probes=20, steps=40, seed=1)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    first_moment = np.trapezoid(found.density * found.grid, found.grid)
    assert first_moment == pytest.approx(found.mean, rel=1e-6)
    assert abs(found.mean - float(values.mean())) < 4 * found.mean_standard_error
    upper = found.grid > 5
    assert np.trapezoid(found.density[upper], found.grid[upper]) == pytest.approx(0.3, abs=0.03)
    assert found.density[(found.grid > 1.5) & (found.grid < 8)].max() < 1e-3
    assert found.hvps == op.products == 800


def test_density_of_a_single_eigenvalue() -> None:
    found = spectral_density(with_eigenvalues([3.0] * 6), probes=2)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert found.grid[found.density.argmax()] == pytest.approx(3, abs=0.01)


def test_pyhessian_run_by_hand_and_as_a_method_agree_with_lanczos() -> None:
    model, batches = network()
    ours = curvature(model, cross_entropy, batches[:1], method="lanczos")
    wrapped = curvature(model, cross_entropy, batches[:1], method="pyhessian", iterations=2000, tolerance=1e-7)
    model.requires_grad_(False)
    for s in scores(model).values():
        s.requires_grad_(True)
    torch.manual_seed(0)
    by_hand, _ = PyHessian(model, nn.CrossEntropyLoss(), data=batches[0], cuda=False).eigenvalues(2000, 1e-7)
    assert ours.dominant_eigenvalue == pytest.approx(by_hand[0], rel=1e-3)
    assert wrapped.dominant_eigenvalue == pytest.approx(by_hand[0], rel=1e-3)
    assert wrapped.lambda_max == pytest.approx(ours.lambda_max, rel=1e-3)


def test_pyhessian_agrees_over_several_batches_and_in_the_batch_s_statistics() -> None:
    model, batches = network()
    for mode in ("running", "batch"):
        ours = curvature(model, cross_entropy, batches, method="lanczos", batch_norm=mode)
        theirs = curvature(
            model,
            cross_entropy,
            batches,
            method="pyhessian",
            batch_norm=mode,
            iterations=2000,
            tolerance=1e-7,
        )
        assert theirs.lambda_max == pytest.approx(ours.lambda_max, rel=1e-3)


@pytest.mark.parametrize("method", ["power", "lanczos", "pyhessian"])
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_curvature_leaves_model_and_generator_as_they_were_and_prints_nothing(
    method: str, mode: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model, batches = network()
    model.train()
    cross_entropy(model, batches[0]).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    torch.set_warn_always(True)  # or torch's warnings would come once in a process
    curvature(model, cross_entropy, batches, batch_norm=mode, method=method, by_layer="layer")
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
    running = curvature(model, cross_entropy, batches, method="lanczos", batch_norm="running")
    batch = curvature(model, cross_entropy, batches, method="lanczos", batch_norm="batch")
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
        found = curvature(model, cross_entropy, batches, method="lanczos", by_layer=by)
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
    for method in ("lanczos", "power"):
        found = curvature(model, cross_entropy, batches, method=method, iterations=50, tolerance=1e-4)
        assert found.converged
        # Two values q at weights w and 1 - w deviate by sqrt(w (1 - w)) |q1 - q2|.
        assert found.lambda_max_std == pytest.approx(2**0.5 * (2 / 9) ** 0.5 * abs(first - second), rel=1e-2)
        assert found.lambda_max_standard_error == pytest.approx(2 * (2 / 9) * abs(first - second), rel=1e-2)
    assert (found.batches, found.batch_size, found.n_scores) == (2, 16, 162)
    single = curvature(model, cross_entropy, batches[:1])
    assert single.lambda_max_std is None
    assert single.symmetry_defect < 1e-12


def test_deviations_are_numpy_s_where_all_weigh_alike() -> None:
    values = [3.0, 1.0, 4.0, 1.5]
    for counts in (None, [7, 7, 7, 7]):
        assert standard_deviation(values, counts) == pytest.approx(np.std(values, ddof=1))
        assert standard_error(values, counts) == pytest.approx(np.std(values, ddof=1) / 2)
    assert standard_error([1.0]) is None


def test_the_pyhessian_method_frees_the_graphs_that_pyhessian_leaks() -> None:
    model = attach(nn.Sequential(nn.Linear(36, 256), nn.ReLU(), nn.Linear(256, 3)), keep=0.5)
    batch = (torch.randn(1000, 36), torch.arange(1000) % 3)

    def use(times: int) -> int:
        for _ in range(times):
            with ScoreHessian(model, cross_entropy, [batch]) as op:
                lambda_max(op, method="pyhessian", iterations=1)
        return psutil.Process(os.getpid()).memory_info().rss

    gc.disable()
    try:
        before = use(20)
        assert use(100) - before < 30e6
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: lambda_max(op, method="qr"), "method = 'qr'"),
        (lambda op: lambda_max(op, method="pyhessian"), "measures a ScoreHessian"),
        (lambda op: lambda_max(op, start=torch.ones(2)), "start: method = 'lanczos'"),
        (lambda op: lambda_max(op, iterations=0), "iterations = 0"),
        (lambda op: lanczos(op, k=0), "k = 0"),
        (lambda op: trace(op, probes=0), "probes = 0"),
        (lambda op: spectral_density(op, steps=0), "steps = 0"),
        (lambda op: power_iteration(Matrix(op.entries * torch.inf)), "not finite"),
        (lambda op: curvature(*network()[:1], cross_entropy, network()[1], by_layer="stage"), "by_layer"),
    ],
)
def test_options_out_of_range_are_named(call: Callable[[Matrix], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(with_eigenvalues([1.0, 2.0]))
