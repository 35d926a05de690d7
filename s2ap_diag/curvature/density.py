"""Trace and density of the eigenvalues of a symmetric operator, by products with random vectors."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from s2ap_diag.curvature.deviations import standard_error
from s2ap_diag.curvature.krylov import lanczos_steps
from s2ap_diag.curvature.operators import SymmetricOperator, check_counts, finite_product, sign_vectors
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import look, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Trace(Result):
    """Hutchinson's estimate of a trace with its standard error (None for a single probe)."""

    value: float
    standard_error: float | None
    probes: int
    hvps: int

    def draw(self, axes: "Axes") -> None:
        """Draw the trace with its standard error."""
        points(axes, {"trace": (self.value, self.standard_error)}, ylabel="trace ± standard error")


@dataclass(frozen=True, eq=False)
class SpectralDensity(Result):
    """The density of the n eigenvalues, normalised to one.

    Attributes:
        grid, density: [points]; density integrates to one over grid, in units of 1 / eigenvalue.
        mean: mean eigenvalue, an estimate of trace / n, with its standard error over the probes.
        broadening: standard deviation of the Gaussian that stands for each eigenvalue.
    """

    by: ClassVar[str] = "point"

    grid: np.ndarray = field(repr=False)
    density: np.ndarray = field(repr=False)
    mean: float
    mean_standard_error: float | None
    broadening: float
    probes: int
    steps: int
    hvps: int

    def draw(self, axes: "Axes", label: str = "", index: int = 0) -> None:
        """Draw the density on a logarithmic scale, where the few large eigenvalues can be seen.

        Args:
            label, index: of this density among several on the same axes.
        """
        style = {name: value for name, value in look(index).items() if name != "marker"}
        axes.semilogy(self.grid, np.maximum(self.density, 1e-12), label=label, **style)
        axes.set(xlabel="eigenvalue", ylabel="density", ylim=(1e-9 * self.density.max(), None))


def trace(op: SymmetricOperator, *, probes: int = 32, seed: int = 0) -> Trace:
    """Trace by Hutchinson's estimator: the mean of z'Hz over vectors z of random signs.

    Raises:
        InputError: if ``probes`` is below 1, or a product is not finite.
    """
    check_counts(probes=probes)
    estimates = [float(z @ finite_product(op, z)) for z in sign_vectors(op, probes, seed, "trace")]
    return Trace(float(np.mean(estimates)), standard_error(estimates), probes, probes)


def spectral_density(
    op: SymmetricOperator,
    *,
    probes: int = 8,
    steps: int = 64,
    seed: int = 0,
    broadening: float | None = None,
    points: int = 2048,
) -> SpectralDensity:
    """Estimate the eigenvalue density by stochastic Lanczos quadrature (Lin, Saad & Yang 2016; Ghorbani et al. 2019).

    Each probe z of random signs gives the nodes and weights of a Gauss quadrature for z'f(H)z / n; the
    density is the mean over the probes, each node being a normal distribution of width ``broadening``
    (by default 1/200 of the range of the nodes). At most ``probes * steps`` products.

    Raises:
        InputError: if ``probes`` or ``steps`` is below 1, or a product is not finite.
    """
    check_counts(probes=probes, steps=steps)
    nodes, weights, means, hvps = [], [], [], 0
    for z in sign_vectors(op, probes, seed, "density"):
        *_, krylov = lanczos_steps(op, z, steps)
        theta, vectors = krylov.ritz()
        nodes.append(theta)
        weights.append(vectors[0] ** 2)
        means.append(float(theta @ vectors[0] ** 2))
        hvps += len(theta)
    node, weight = np.concatenate(nodes), np.concatenate(weights) / probes
    low, high = node.min(), node.max()
    # An operator with a single eigenvalue has no range; its magnitude then sets the scale.
    magnitude = max(abs(low), abs(high)) or 1.0
    width = broadening or max(high - low, 1e-3 * magnitude) / 200
    # Fine enough for the narrowest peak, or the integral would not be one.
    points = max(points, math.ceil((high - low) / width) * 4)
    grid = np.linspace(low - 6 * width, high + 6 * width, points)
    peaks = np.exp(-0.5 * ((grid[:, None] - node) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return SpectralDensity(
        grid, peaks @ weight, float(np.mean(means)), standard_error(means), width, probes, steps, hvps
    )
