"""Eigenvalues, trace and density against NumPy, closed forms and PyHessian."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from pyhessian import hessian as PyHessian
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, scores
from s2ap_diag.curvature.eigen import curvature, lambda_max, lanczos, power_iteration, spectral_density, trace
from s2ap_diag.curvature.hessian import ScoreHessian


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
    again = lambda_max(op, iterations=300, tolerance=1e-8, start=lambda_max(op, iterations=100))
    assert again.hvps <= 6
    assert again.lambda_max == pytest.approx(3)


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
    curvature(model, cross_entropy, batches, batch_norm=mode, method=method, per_batch=True, by_layer="layer")
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


def test_uncertainty_over_batches_and_the_cost() -> None:
    model, batches = network()
    alone = [np.linalg.eigvalsh(dense(ScoreHessian(model, cross_entropy, [batch])))[-1] for batch in batches]
    found = curvature(model, cross_entropy, batches, method="lanczos", per_batch=True)
    assert found.per_batch == pytest.approx(alone, rel=1e-4)
    assert found.lambda_max_mean == pytest.approx(np.mean(alone), rel=1e-4)
    assert found.lambda_max_std == pytest.approx(np.std(alone, ddof=1), rel=1e-3)
    assert found.lambda_max_standard_error == pytest.approx(found.lambda_max_std / 2**0.5)
    assert found.lambda_max <= (2 * alone[0] + alone[1]) / 3 * (1 + 1e-6)  # weights 16 and 8
    assert (found.batches, found.batch_size, found.n_scores) == (2, 16, 162)
    single = curvature(model, cross_entropy, batches[:1], per_batch=True)
    assert single.lambda_max_std is None
    # Eleven products for the value, eleven for the batch alone, two for the symmetry defect.
    assert single.hvps == 24
    assert single.symmetry_defect < 1e-12
    assert curvature(model, cross_entropy, batches).hvps == 2 * 13


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
