"""Eigenvalues of a symmetric operator that is known by its products alone.

How they are found is a value, a :class:`Solver` that carries its limits: :class:`Lanczos`, :class:`PowerIteration`
or :class:`s2ap_diag.curvature.pyhessian.PyHessian`. Each takes any object with ``n``, ``dtype``, ``device`` and
``matvec`` (for instance :class:`s2ap_diag.curvature.hessian.ScoreHessian`), is deterministic in its seed, and returns
what it found together with its residual and its cost. Two names are kept apart throughout: the *dominant eigenvalue*
is the one of largest magnitude, with its sign, which power iteration converges to; *lambda_max* is the largest
algebraically.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_diag.curvature.krylov import Krylov, lanczos_steps
from s2ap_diag.curvature.operators import SymmetricOperator, check_counts, finite_product, normal_vector
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Residual below which a reading that ran a fixed number of iterations is called converged.
CONVERGED = 1e-2

UNRELIABLE = 0.1
"""Residual above which an eigenvalue is warned of."""


@dataclass(frozen=True, eq=False)
class Eigenpair:
    """An approximate eigenvalue with its evidence.

    Attributes:
        value: Rayleigh quotient v'Hv, signed.
        vector: v [n], of norm 1.
        product: Hv [n]; as a start it is one step of power iteration ahead of ``vector``.
        residual: ``|Hv - value v| / |value|``; an eigenvalue lies within ``residual * |value|`` of value.
        converged: whether the residual reached the tolerance (1e-2 where none was asked for).
        hvps: products that it cost.
    """

    value: float
    vector: Tensor = field(repr=False)
    product: Tensor = field(repr=False)
    residual: float
    converged: bool
    hvps: int


@dataclass(frozen=True, eq=False)
class LambdaMax(Result):
    """The largest eigenvalue beside the dominant one; the same pair unless the latter is negative."""

    largest: Eigenpair
    dominant: Eigenpair
    hvps: int

    @property
    def lambda_max(self) -> float:
        """Largest algebraic eigenvalue."""
        return self.largest.value

    @property
    def dominant_eigenvalue(self) -> float:
        """Eigenvalue of largest magnitude, signed."""
        return self.dominant.value

    @property
    def residual(self) -> float:
        """Relative residual of lambda_max."""
        return self.largest.residual

    @property
    def converged(self) -> bool:
        """Whether both eigenvalues converged."""
        return self.largest.converged and self.dominant.converged

    def row(self) -> dict[str, Any]:
        """Give both eigenvalues, the residual of lambda_max, whether both converged, and the cost."""
        return {n: getattr(self, n) for n in ("lambda_max", "dominant_eigenvalue", "residual", "converged", "hvps")}

    def details(self) -> dict[str, Any]:
        """Give none: an eigenvector is as long as there are scores."""
        return {}

    def draw(self, axes: "Axes") -> None:
        """Draw both eigenvalues, each with how far an eigenvalue lies at most."""
        pairs = {"lambda_max": self.largest, "dominant": self.dominant}
        values = {name: (pair.value, pair.residual * abs(pair.value)) for name, pair in pairs.items()}
        points(axes, values, ylabel="eigenvalue ± residual")


@dataclass(frozen=True, eq=False)
class Ends:
    """Both ends of a spectrum.

    Attributes:
        largest: the k largest eigenvalues, in descending order; a multiple eigenvalue appears once, and
            there are fewer where the operator has fewer that the start vector reaches.
        smallest: the smallest eigenvalue.
    """

    largest: tuple[Eigenpair, ...]
    smallest: Eigenpair
    hvps: int


@dataclass(frozen=True)
class Solver(ABC):
    """A way to find lambda_max, with its limits.

    Attributes:
        name: what commands call it.
        iterations: the most that it makes, see each.
        tolerance: it stops at this residual; None makes all the iterations.
        ends_on_vector: whether its last product is the one with lambda_max's vector.

    Raises:
        InputError: if ``iterations`` is below 1.
    """

    name: ClassVar[str]
    ends_on_vector: ClassVar[bool]
    iterations: int
    tolerance: float | None

    def __post_init__(self) -> None:
        check_counts(iterations=self.iterations)

    @abstractmethod
    def solve(self, op: SymmetricOperator, *, seed: int = 0) -> LambdaMax:
        """Find the largest and the dominant eigenvalue.

        Raises:
            InputError: if a product is not finite.
        """


@dataclass(frozen=True)
class Lanczos(Solver):
    """Lanczos with full reorthogonalisation, which finds both ends of the spectrum at once.

    Each iteration is one product; ``iterations`` vectors [n] are held.

    Attributes:
        start: a vector [n] to start from, of any norm; by default, and for zero, a normal draw.
    """

    name: ClassVar[str] = "lanczos"
    ends_on_vector: ClassVar[bool] = False
    iterations: int = 64
    tolerance: float | None = 1e-4
    start: Tensor | None = field(default=None, repr=False, compare=False)

    def solve(self, op: SymmetricOperator, *, seed: int = 0) -> LambdaMax:
        """Take of both ends the largest eigenvalue, and the dominant one."""
        theta, pair = self._solved(op, 1, seed)
        largest = pair(len(theta) - 1)
        return LambdaMax(largest, largest if abs(theta[-1]) >= abs(theta[0]) else pair(0), len(theta))

    def ends(self, op: SymmetricOperator, *, k: int = 1, seed: int = 0) -> Ends:
        """Find the k largest eigenpairs and the smallest one.

        Stops when the k largest pairs and the dominant one have a residual of at most ``tolerance``. The residuals
        are the bounds that the recurrence gives for free, ``|beta_m s_m| / |theta|``.

        Raises:
            InputError: if ``k`` is below 1, ``start`` has another length than n, or a product is not finite.
        """
        check_counts(k=k)
        theta, pair = self._solved(op, k, seed)
        largest = tuple(pair(i) for i in reversed(range(max(0, len(theta) - k), len(theta))))
        return Ends(largest, pair(0), len(theta))

    def _solved(self, op: SymmetricOperator, k: int, seed: int) -> tuple[Sequence[float], Callable[[int], Eigenpair]]:
        """Give the Ritz values in ascending order, and what makes the pair of one by its number."""
        for krylov in lanczos_steps(op, _first(op, self.start, seed, self.name), self.iterations):
            theta, vectors = krylov.ritz()
            bounds = abs(krylov.betas[-1] * vectors[-1])
            residuals = np.array([relative(e, t) for e, t in zip(bounds, theta, strict=True)])
            steps = len(theta)
            needed = {steps - 1 - i for i in range(k)} | {int(np.abs(theta).argmax())}
            if self.tolerance is not None and min(needed) >= 0 and max(residuals[list(needed)]) <= self.tolerance:
                break

        def pair(i: int) -> Eigenpair:
            vector, product = _ritz_pair(krylov, float(theta[i]), vectors[:, i])
            residual = float(residuals[i])
            return Eigenpair(float(theta[i]), vector, product, residual, residual <= target, steps)

        target = CONVERGED if self.tolerance is None else self.tolerance
        return theta.tolist(), pair


def _ritz_pair(krylov: Krylov, theta: float, eigenvector: np.ndarray) -> tuple[Tensor, Tensor]:
    """Give v [n] and Hv [n] of an eigenpair of T; the recurrence knows the product without making it."""
    basis, steps = krylov.basis, len(eigenvector)
    weights = torch.as_tensor(eigenvector, dtype=basis.dtype, device=basis.device)
    vector = weights @ basis[:steps]
    product = theta * vector
    if krylov.betas[-1]:
        product.add_(basis[steps], alpha=krylov.betas[-1] * float(eigenvector[-1]))
    return vector, product


@dataclass(frozen=True)
class PowerIteration(Solver):
    """The paper's power iteration (Eq. 10 and 11).

    Where the dominant eigenvalue is negative it goes on with H - lambda I, whose dominant eigenvector is that of
    lambda_max, and its few steps may end far from either.

    Attributes:
        iterations: T, the number of steps v <- Hv / |Hv|; one further product gives the quotient.
        start: a vector [n] to start from, of any norm; by default, and for zero, a normal draw.
    """

    name: ClassVar[str] = "power"
    ends_on_vector: ClassVar[bool] = True
    iterations: int = 10
    tolerance: float | None = None
    start: Tensor | None = field(default=None, repr=False, compare=False)

    def solve(self, op: SymmetricOperator, *, seed: int = 0) -> LambdaMax:
        """Find the dominant eigenvalue, and another one if it is negative.

        Raises:
            InputError: if ``start`` has another length than n, or a product is not finite.
        """
        return largest_by_shift(lambda shift: self._iterate(op, None if shift else self.start, shift, seed))

    def dominant(self, op: SymmetricOperator, *, seed: int = 0) -> Eigenpair:
        """Find the dominant eigenpair alone, by ``iterations`` + 1 products at most.

        Raises:
            InputError: as :meth:`solve`.
        """
        return self._iterate(op, self.start, 0.0, seed)

    def _iterate(self, op: SymmetricOperator, start: Tensor | None, shift: float, seed: int) -> Eigenpair:
        """Iterate with H - shift I; value and residual remain those of H."""
        v = _first(op, start, seed, self.name)
        v = v / v.norm()
        for products in range(1, self.iterations + 2):
            hv = finite_product(op, v)
            value = float(v @ hv)
            residual = relative(float((hv - value * v).norm()), value)
            if self.tolerance is not None and residual <= self.tolerance:
                break
            ahead = hv - shift * v if shift else hv
            norm = float(ahead.norm())
            if products > self.iterations or norm == 0:
                break
            v = ahead / norm
        converged = residual <= (CONVERGED if self.tolerance is None else self.tolerance)
        return Eigenpair(value, v, hv, residual, converged, products)


def _first(op: SymmetricOperator, start: Tensor | None, seed: int, name: str) -> Tensor:
    """Choose the vector to start from; a solver's draws are its own."""
    if start is not None and len(start) != op.n:
        raise InputError(f"start = a vector of {len(start)} entries: the operator has {op.n} coordinates")
    return start if start is not None and start.any() else normal_vector(op, seed, name)


def largest_by_shift(dominant_of: Callable[[float], Eigenpair]) -> LambdaMax:
    """Find lambda_max by what finds a dominant eigenpair: where that of H is negative, also that of H - lambda I.

    Args:
        dominant_of: from a shift to the dominant eigenpair of H - shift I, with value and residual in H.
    """
    dominant = dominant_of(0.0)
    if dominant.value >= 0:
        return LambdaMax(dominant, dominant, dominant.hvps)
    largest = dominant_of(dominant.value)
    return LambdaMax(largest, dominant, dominant.hvps + largest.hvps)


def lambda_max(op: SymmetricOperator, solver: Solver = Lanczos(), *, seed: int = 0) -> LambdaMax:
    """Find the largest and the dominant eigenvalue of ``op``; a residual above 0.1 is warned of.

    Raises:
        InputError: if a product is not finite, or as the solver says.

    >>> from types import SimpleNamespace
    >>> a = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
    >>> op = SimpleNamespace(n=3, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> round(lambda_max(op, PowerIteration(iterations=50)).lambda_max, 4)
    3.0
    """
    found = solver.solve(op, seed=seed)
    warn_of_residuals({"lambda_max": found.residual}, stacklevel=3)
    return found


def unreliable(residuals: Mapping[str, float]) -> str | None:
    """Say which of several readings has the largest residual, where that is above 0.1; None where none is."""
    name = max(residuals, key=lambda name: residuals[name])
    if residuals[name] <= UNRELIABLE:
        return None
    return f"{name} has not converged, its residual is {residuals[name]:.2g}"


def warn_of_residuals(residuals: Mapping[str, float], stacklevel: int = 2) -> None:
    """Warn who calls from Python of the largest residual, where it is above 0.1."""
    if message := unreliable(residuals):
        warnings.warn(f"{message}; raise the solver's iterations, or take Lanczos()", stacklevel=stacklevel)


def relative(error: float, value: float) -> float:
    """Compute ``error / |value|``, 0 / 0 being exact."""
    return float(error) / abs(value) if value else (math.inf if error else 0.0)
