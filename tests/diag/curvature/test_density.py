"""Trace and density against NumPy and closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from s2ap_core.errors import InputError
from s2ap_diag.curvature.density import spectral_density, trace
from tests.spectra import Matrix, with_eigenvalues


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: trace(op, probes=0), "probes = 0"),
        (lambda op: spectral_density(op, steps=0), "steps = 0"),
    ],
)
def test_options_out_of_range_are_named(call: Callable[[Matrix], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(with_eigenvalues([1.0, 2.0]))
