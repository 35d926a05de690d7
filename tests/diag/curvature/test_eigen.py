"""Solvers against NumPy and closed forms."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2ap_core.errors import InputError
from s2ap_diag.curvature.eigen import Lanczos, PowerIteration, lambda_max
from tests.spectra import Matrix, with_eigenvalues


def test_power_iteration_makes_the_paper_s_steps() -> None:
    # Eq. 10 and 11 written out in NumPy.
    op = with_eigenvalues([4.0, 3.0, 1.0, -2.0])
    a, v = op.entries.numpy(), np.array([1.0, 2.0, -1.0, 0.5])
    pair = PowerIteration(start=torch.from_numpy(v)).dominant(op)
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
    cold = PowerIteration(500, tolerance=1e-6).dominant(op)
    assert cold.converged
    assert cold.residual <= 1e-6
    assert cold.value == pytest.approx(10, rel=1e-6)
    warm = PowerIteration(500, tolerance=1e-6, start=cold.product).dominant(op)
    assert warm.hvps == 1 < cold.hvps


def test_the_residual_bounds_the_error() -> None:
    op = with_eigenvalues(torch.linspace(-3, 7, 40))
    for iterations in (1, 3, 10, 30):
        pair = PowerIteration(iterations).dominant(op)
        nearest = np.abs(np.linspace(-3, 7, 40) - pair.value).min()
        assert nearest <= pair.residual * abs(pair.value)


def test_a_dominant_eigenvalue_that_is_negative_is_told_from_lambda_max() -> None:
    op = with_eigenvalues([-8.0, 3.0, 1.0, -1.0])
    assert PowerIteration(200).dominant(op).value == pytest.approx(-8)
    for solver in (PowerIteration(300, tolerance=1e-8), Lanczos()):
        op.products = 0
        found = lambda_max(op, solver)
        assert found.dominant_eigenvalue == pytest.approx(-8)
        assert found.lambda_max == pytest.approx(3)
        assert found.converged
        assert found.hvps == op.products
    first = lambda_max(op)
    again = lambda_max(op, Lanczos(start=first.largest.vector + first.dominant.vector))
    assert again.hvps == 2  # the plane of both
    assert again.dominant_eigenvalue == pytest.approx(-8)
    assert again.lambda_max == pytest.approx(3)


def test_by_default_lambda_max_is_found_beside_a_larger_negative_eigenvalue() -> None:
    # Ten products of power iteration are spent on the bulk at the lower end: 0.05 or so where 0.8 is right.
    op = with_eigenvalues([0.8, *torch.linspace(-0.5, 0.5, 60), *torch.linspace(-10, -9, 10)])
    found, paper = lambda_max(op), lambda_max(op, PowerIteration())
    assert found.lambda_max == pytest.approx(0.8, rel=1e-6)
    assert found.dominant_eigenvalue == pytest.approx(-10, rel=1e-3)
    assert found.converged
    assert abs(paper.lambda_max - 0.8) > 0.2
    assert not paper.converged


def test_an_operator_and_a_start_may_ask_for_gradients() -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0])).requires_grad_()
    op = SimpleNamespace(n=3, dtype=matrix.dtype, device=matrix.device, matvec=lambda v: matrix @ v)
    found = Lanczos(start=torch.ones(3, requires_grad=True)).solve(op)
    assert found.lambda_max == pytest.approx(3.0)
    assert not found.largest.vector.requires_grad


def test_lanczos_finds_both_ends_and_bounds_its_errors() -> None:
    values = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([20.0, 9.0, 8.5, -5.0])])
    op = with_eigenvalues(values)
    found = Lanczos(100, tolerance=1e-6).ends(op, k=3)
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
    found = Lanczos(50, tolerance=1e-6).ends(with_eigenvalues([20.0, *torch.linspace(-30, -29, 50)]))
    assert found.smallest.residual <= 1e-6
    assert found.smallest.value == pytest.approx(-30, rel=1e-9)
    assert found.hvps < 50


def test_lanczos_keeps_its_basis_orthogonal_where_the_plain_recurrence_makes_ghosts() -> None:
    values = torch.cat([torch.linspace(0, 1, 100), torch.tensor([1e4])])
    found = Lanczos(80, tolerance=None).ends(with_eigenvalues(values), k=3)
    second, third = found.largest[1].value, found.largest[2].value
    assert 0.99 < second <= 1 + 1e-9  # a ghost would be a second copy of 1e4
    assert third < second


@pytest.mark.parametrize("values", [[0.0] * 5, [2.0] * 5, [3.0, 0.0, 0.0, 0.0, 0.0]])
def test_lanczos_stops_when_the_space_is_exhausted(values: list[float]) -> None:
    op = with_eigenvalues(values)
    found = Lanczos(50).ends(op, k=4)
    assert found.largest[0].value == pytest.approx(max(values), abs=1e-12)
    assert found.hvps == op.products <= 5
    assert PowerIteration(5).dominant(op).value == pytest.approx(max(values), abs=1e-12)


def test_solvers_are_values() -> None:
    assert PowerIteration(5) == PowerIteration(iterations=5, tolerance=None, start=torch.ones(3))
    assert Lanczos() != Lanczos(iterations=5)
    assert len({Lanczos(), Lanczos(64), PowerIteration(64, 1e-4)}) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: Lanczos(iterations=0), "iterations = 0"),
        (lambda op: Lanczos().ends(op, k=0), "k = 0"),
        (lambda op: lambda_max(op, PowerIteration(start=torch.ones(3))), "start = a vector of 3 entries: .* 2"),
        (lambda op: lambda_max(op, Lanczos(start=torch.ones(3))), "start = a vector of 3 entries: .* 2"),
        (lambda op: lambda_max(Matrix(op.entries * torch.inf), PowerIteration()), "not finite"),
    ],
)
def test_options_out_of_range_are_named(call: Callable[[Matrix], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(with_eigenvalues([1.0, 2.0]))
