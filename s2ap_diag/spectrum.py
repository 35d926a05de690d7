"""Eigenvalues, trace and density of a symmetric operator that is known by its products alone.

Every function here takes any object with ``n``, ``dtype``, ``device`` and ``matvec`` (for instance
:class:`s2ap_diag.hessian.ScoreHessian`), is deterministic in its seed, and returns what it found
together with its residual and its cost. Two names are kept apart throughout: the *dominant eigenvalue*
is the one of largest magnitude, with its sign, which power iteration converges to; *lambda_max* is the
largest algebraically.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from s2ap_core import distributed
from s2ap_core.errors import InputError
from s2ap_core.seeds import derive_seed, generator
from s2ap_diag.hessian import BatchNormMode, Loss, ScoreHessian, dead_scores, flatten, samples_in, unflatten

Method = Literal["power", "lanczos", "pyhessian"]
# Iterations and tolerance of each method: the paper's T, and what the others need to converge.
DEFAULTS: dict[str, tuple[int, float | None]] = {
    "power": (10, None),
    "lanczos": (64, 1e-4),
    "pyhessian": (100, 1e-4),
}
# Residual below which a reading that ran a fixed number of iterations is called converged.
CONVERGED = 1e-2


class SymmetricOperator(Protocol):
    """A symmetric matrix [n, n] by its products; ``matvec`` maps a vector [n] to a vector [n]."""

    n: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor: ...


class Projected:
    """The rows and columns of an operator at some of its coordinates: P'HP, symmetric, [n, n].

    Args:
        op: H, an operator of ``m`` coordinates; it makes the products.
        onto: boolean [m], the coordinates that stay.

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    >>> op = SimpleNamespace(n=3, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> Projected(op, torch.tensor([True, False, True])).matvec(torch.tensor([1.0, 0.0]))
    tensor([1., 3.])
    """

    def __init__(self, op: SymmetricOperator, onto: Tensor) -> None:
        self.op, self.index = op, onto.nonzero().squeeze(1)
        self.n, self.dtype, self.device = len(self.index), op.dtype, op.device

    def restrict(self, v: Tensor) -> Tensor:
        """P'v: of a vector [m] the entries that stay, [n]."""
        return v[self.index]

    def expand(self, v: Tensor) -> Tensor:
        """Pv: a vector [n] with 0 in the other places, [m]."""
        return v.new_zeros(self.op.n).index_copy_(0, self.index, v)

    def matvec(self, v: Tensor) -> Tensor:
        """P'HPv for a vector [n], at one product of H."""
        return self.restrict(self.op.matvec(self.expand(v)))


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
class LambdaMax:
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


@dataclass(frozen=True, eq=False)
class Lanczos:
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
class Trace:
    """Hutchinson's estimate of a trace with its standard error (None for a single probe)."""

    value: float
    standard_error: float | None
    probes: int
    hvps: int


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The density of the n eigenvalues, normalised to one.

    Attributes:
        grid, density: [points]; density integrates to one over grid, in units of 1 / eigenvalue.
        mean: mean eigenvalue, an estimate of trace / n, with its standard error over the probes.
        broadening: standard deviation of the Gaussian that stands for each eigenvalue.
    """

    grid: np.ndarray = field(repr=False)
    density: np.ndarray = field(repr=False)
    mean: float
    mean_standard_error: float | None
    broadening: float
    probes: int
    steps: int
    hvps: int


def power_iteration(
    op: SymmetricOperator,
    *,
    iterations: int = 10,
    tolerance: float | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    shift: float = 0.0,
) -> Eigenpair:
    """The dominant eigenpair, by Eq. 10 and 11 of the paper; ``iterations`` + 1 products at most.

    Args:
        iterations: T, the number of steps v <- Hv / |Hv|; one further product gives the quotient.
        tolerance: stop as soon as the residual is no larger; None makes all the iterations.
        start: vector [n] to start from, of any norm; by default, and for zero, a normal draw from ``seed``.
        shift: iterate with H - shift I, whose dominant eigenvector another end of the spectrum of H
            can be; value and residual remain those of H.

    Raises:
        InputError: if a product is not finite.
    """
    v = start if start is not None and start.any() else _normal(op, seed, "power")
    v = v / v.norm()
    for products in range(1, iterations + 2):
        hv = _matvec(op, v)
        value = float(v @ hv)
        residual = _relative(float((hv - value * v).norm()), value)
        if tolerance is not None and residual <= tolerance:
            break
        ahead = hv - shift * v if shift else hv
        norm = float(ahead.norm())
        if products > iterations or norm == 0:
            break
        v = ahead / norm
    converged = residual <= (CONVERGED if tolerance is None else tolerance)
    return Eigenpair(value, v, hv, residual, converged, products)


def lanczos(
    op: SymmetricOperator,
    *,
    k: int = 1,
    iterations: int = 64,
    tolerance: float | None = 1e-4,
    seed: int = 0,
) -> Lanczos:
    """The k largest eigenpairs and the smallest one, by Lanczos with full reorthogonalisation.

    Stops when the k largest pairs and the dominant one have a residual of at most ``tolerance``, at the
    latest after ``iterations`` products. The residuals are the bounds that the recurrence gives for
    free, ``|beta_m s_m| / |theta|``. Holds ``iterations`` vectors [n].

    Raises:
        InputError: if ``k`` or ``iterations`` is below 1, or a product is not finite.
    """
    _check_counts(k=k, iterations=iterations)
    target = CONVERGED if tolerance is None else tolerance
    for krylov in _lanczos(op, _normal(op, seed, "lanczos"), iterations):
        theta, vectors, residuals = krylov.ritz()
        steps = len(theta)
        needed = {steps - 1 - i for i in range(k)} | {int(np.abs(theta).argmax())}
        if tolerance is not None and min(needed) >= 0 and max(residuals[list(needed)]) <= tolerance:
            break

    def pair(i: int) -> Eigenpair:
        weights = torch.as_tensor(vectors[:, i], dtype=op.dtype, device=op.device)
        vector = weights @ krylov.basis[:steps]
        product = float(theta[i]) * vector
        if krylov.betas[-1]:
            product = product + krylov.betas[-1] * weights[-1] * krylov.basis[steps]
        residual = float(residuals[i])
        return Eigenpair(float(theta[i]), vector, product, residual, residual <= target, steps)

    largest = tuple(pair(i) for i in reversed(range(max(0, steps - k), steps)))
    return Lanczos(largest, pair(0), steps)


def lambda_max(
    op: SymmetricOperator,
    *,
    method: Method = "lanczos",
    iterations: int | None = None,
    tolerance: float | None = None,
    start: Tensor | LambdaMax | None = None,
    seed: int = 0,
) -> LambdaMax:
    """Largest and dominant eigenvalue of ``op``.

    Args:
        method: ``lanczos`` finds both ends of the spectrum at once. ``power`` is the paper's power iteration;
            where the dominant eigenvalue is negative it goes on with H - lambda I, whose dominant eigenvector
            is that of lambda_max, and its few steps may end far from either. ``pyhessian`` runs the PyHessian
            package, for ScoreHessian and its :class:`Projected` alone. The last product of the latter two is
            the one with lambda_max's vector.
        iterations, tolerance: of the method, 10 and none for ``power``, else see ``DEFAULTS``. The
            tolerance is on the residual, for ``pyhessian`` on the change between two iterations.
        start: for ``power`` alone, a vector [n] or the last reading, each of whose pairs is continued.

    Raises:
        InputError: if the method is unknown or takes no start, ``iterations`` is below 1, or a product not finite.
    """
    if method not in get_args(Method):
        raise InputError(f"method = {method!r}: choose power, lanczos or pyhessian")
    if start is not None and method != "power":
        raise InputError(f"start: method = {method!r} goes on from no vector; use power")
    usual_iterations, usual_tolerance = DEFAULTS[method]
    iterations = usual_iterations if iterations is None else iterations
    tolerance = usual_tolerance if tolerance is None else tolerance
    _check_counts(iterations=iterations)
    if method == "lanczos":
        ends = lanczos(op, iterations=iterations, tolerance=tolerance, seed=seed)
        dominant = max(ends.largest[0], ends.smallest, key=lambda pair: abs(pair.value))
        return LambdaMax(ends.largest[0], dominant, ends.hvps)

    warm = start if isinstance(start, LambdaMax) else None

    def iterate(start: Tensor | None, shift: float) -> Eigenpair:
        if method == "pyhessian":
            return _pyhessian(op, iterations=iterations, tolerance=tolerance, seed=seed, shift=shift)
        return power_iteration(op, iterations=iterations, tolerance=tolerance, start=start, seed=seed, shift=shift)

    dominant = iterate(warm.dominant.product if warm else start, 0.0)  # type: ignore[arg-type]
    if dominant.value >= 0:
        return LambdaMax(dominant, dominant, dominant.hvps)
    largest = iterate(warm.largest.vector if warm else None, dominant.value)
    return LambdaMax(largest, dominant, dominant.hvps + largest.hvps)


def trace(op: SymmetricOperator, *, probes: int = 32, seed: int = 0) -> Trace:
    """Trace by Hutchinson's estimator: the mean of z'Hz over vectors z of random signs.

    Raises:
        InputError: if ``probes`` is below 1, or a product is not finite.
    """
    _check_counts(probes=probes)
    estimates = [float(z @ _matvec(op, z)) for z in _signs(op, probes, seed, "trace")]
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
    """The eigenvalue density by stochastic Lanczos quadrature (Lin, Saad & Yang 2016; Ghorbani et al. 2019).

    Each probe z of random signs gives the nodes and weights of a Gauss quadrature for z'f(H)z / n; the
    density is the mean over the probes, each node being a normal distribution of width ``broadening``
    (by default 1/200 of the range of the nodes). At most ``probes * steps`` products.

    Raises:
        InputError: if ``probes`` or ``steps`` is below 1, or a product is not finite.
    """
    _check_counts(probes=probes, steps=steps)
    nodes, weights, means, hvps = [], [], [], 0
    for z in _signs(op, probes, seed, "density"):
        *_, krylov = _lanczos(op, z, steps)
        theta, vectors, _ = krylov.ritz()
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


@dataclass(frozen=True)
class Curvature:
    """Sharpness of the robust loss in the scores at one point of the search.

    What ends in ``live`` is of the scores of channels that keep at least one weight, which :class:`Projected` gives,
    and the same as without where no channel is dead (:class:`s2ap_diag.hessian.DeadScores`).

    Attributes:
        lambda_max, lambda_max_live: largest eigenvalue of the Hessian of the mean loss over all batches.
        dead_channels: number of output channels that keep no weight.
        dead_share: share of dead scores in the squared eigenvector of lambda_max, in [0, 1].
        lambda_max_std, lambda_max_standard_error, the same with ``live``: how far lambda_max rests on the batches
            drawn. Of the batches' Rayleigh quotients u'H_b u at its eigenvector u, whose mean it is, the standard
            deviation and the standard error of the mean; None for a single batch. To first order the latter is
            the jackknife's over batches.
        dominant_eigenvalue: the one of largest magnitude, signed.
        residual, residual_live: relative residual of lambda_max, see :class:`Eigenpair`.
        converged, converged_live: whether lambda_max and the dominant eigenvalue reached the tolerance.
        layers, layers_live: lambda_max of the diagonal block of each layer (or block), the largest first.
        layer_residuals, layer_residuals_live: the residual of each of those.
        hvps: Hessian-vector products over one batch, all that this reading made.
        symmetry_defect: see :meth:`s2ap_diag.hessian.ScoreHessian.symmetry_defect`.
        batch_norm: statistics that BatchNorm normalised with, part of the metric.
        batch_size: samples in the first batch.
    """

    lambda_max: float
    lambda_max_live: float
    dead_channels: int
    dead_share: float
    lambda_max_std: float | None
    lambda_max_standard_error: float | None
    lambda_max_live_std: float | None
    lambda_max_live_standard_error: float | None
    dominant_eigenvalue: float
    residual: float
    residual_live: float
    converged: bool
    converged_live: bool
    method: str
    hvps: int
    symmetry_defect: float
    batch_norm: str
    n_scores: int
    batches: int
    batch_size: int
    layers: dict[str, float]
    layer_residuals: dict[str, float]
    layers_live: dict[str, float]
    layer_residuals_live: dict[str, float]


def curvature(
    model: nn.Module,
    loss: Loss,
    batches: Sequence[Any],
    *,
    batch_norm: BatchNormMode = "running",
    method: Method = "lanczos",
    iterations: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    by_layer: Literal["layer", "block"] | None = None,
) -> Curvature:
    """lambda_max of the score-space Hessian (Eq. 10 and 11), with its uncertainty and its cost.

    The model is left bit for bit as it was found. Several processes of a run, which hold the same batches,
    work on every ``world``-th of them each, and all of them get the result.

    Args:
        loss, batches, batch_norm: as for :class:`s2ap_diag.hessian.ScoreHessian`.
        method, iterations, tolerance, seed: as for :func:`lambda_max`.
        by_layer: measure the diagonal block of each ``layer``, or of each ``block``: the layers whose
            names agree in the first two components (``layer1.0.conv1`` is of block ``layer1.0``).

    Raises:
        InputError: for an option out of range, a network without scores, or values that are not finite.
    """
    if by_layer not in (None, "layer", "block"):
        raise InputError(f"by_layer = {by_layer!r}: choose layer or block")
    counts = [samples_in(batch) for batch in batches]

    def read(op: SymmetricOperator) -> LambdaMax:
        return lambda_max(op, method=method, iterations=iterations, tolerance=tolerance, seed=seed)

    def uncertainty(op: SymmetricOperator, found: LambdaMax) -> tuple[float | None, float | None]:
        if method == "lanczos" and len(batches) > 1:
            op.matvec(found.largest.vector)  # its last product was not with the eigenvector
        quotients = distributed.collected([float(quotient) for quotient in whole.quotients])
        return standard_deviation(quotients, counts), standard_error(quotients, counts)

    dead = dead_scores(model)
    with spread(model, loss, batches, batch_norm) as whole:
        overall = live = read(whole)
        deviation, error = live_deviation, live_error = uncertainty(whole, overall)
        if dead.channels:
            block = Projected(whole, ~dead.where)
            live = read(block)
            live_deviation, live_error = uncertainty(block, live)
        defect, hvps = whole.symmetry_defect(seed), whole.hvps
    layers: dict[str, tuple[LambdaMax, LambdaMax]] = {}
    for name, members in _groups(list(whole.scores), by_layer).items() if by_layer else ():
        with whole.restricted(members) as block_of_layers:
            of_block, dead_there = read(block_of_layers), dead_scores(model, members)
            of_live = read(Projected(block_of_layers, ~dead_there.where)) if dead_there.channels else of_block
            layers[name] = of_block, of_live
            hvps += block_of_layers.hvps
    hvps = sum(distributed.gather(hvps))
    sharpest_first = dict(sorted(layers.items(), key=lambda named: -named[1][0].lambda_max))
    return Curvature(
        lambda_max=overall.lambda_max,
        lambda_max_live=live.lambda_max,
        dead_channels=dead.channels,
        dead_share=dead.share(overall.largest.vector),
        lambda_max_std=deviation,
        lambda_max_standard_error=error,
        lambda_max_live_std=live_deviation,
        lambda_max_live_standard_error=live_error,
        dominant_eigenvalue=overall.dominant_eigenvalue,
        residual=overall.residual,
        residual_live=live.residual,
        converged=overall.converged,
        converged_live=live.converged,
        method=method,
        hvps=hvps,
        symmetry_defect=defect,
        batch_norm=batch_norm,
        n_scores=whole.n,
        batches=len(batches),
        batch_size=counts[0],
        layers={name: found.lambda_max for name, (found, _) in sharpest_first.items()},
        layer_residuals={name: found.residual for name, (found, _) in sharpest_first.items()},
        layers_live={name: found.lambda_max for name, (_, found) in sharpest_first.items()},
        layer_residuals_live={name: found.residual for name, (_, found) in sharpest_first.items()},
    )


def spread(model: nn.Module, loss: Loss, batches: Sequence[Any], batch_norm: BatchNormMode) -> ScoreHessian:
    """The Hessian of all ``batches``, of which the processes of a run, if there are several, take turns."""
    if distributed.world() == 1:
        return ScoreHessian(model, loss, batches, batch_norm=batch_norm)
    own, images = distributed.dealt(batches), sum(map(samples_in, batches))
    weights = [samples_in(batch) / images for batch in own]
    return ScoreHessian(model, loss, own, batch_norm=batch_norm, weights=weights)


def standard_deviation(values: Sequence[float], counts: Sequence[int] | None = None) -> float | None:
    """Sample standard deviation of B values, ``sqrt(B / (B - 1) sum w (x - mean)^2)``; None of fewer than two.

    Args:
        counts: samples behind each value, whose share w is its weight; all alike by default.
    """
    return _deviation(values, counts, power=1)


def standard_error(values: Sequence[float], counts: Sequence[int] | None = None) -> float | None:
    """Standard error of the mean of B values, ``sqrt(B / (B - 1) sum w^2 (x - mean)^2)``; None of fewer than two.

    With weights that is the ratio estimator's (Cochran 1977), without the deviation over the root of B.

    Args:
        counts: as for :func:`standard_deviation`.
    """
    return _deviation(values, counts, power=2)


def _deviation(values: Sequence[float], counts: Sequence[int] | None, power: int) -> float | None:
    if len(values) < 2:
        return None
    x = np.asarray(values, dtype=float)
    weights = np.ones(len(x)) if counts is None else np.asarray(counts, dtype=float)
    weights = weights / weights.sum()
    squares = weights**power @ (x - weights @ x) ** 2
    return math.sqrt(len(x) / (len(x) - 1) * squares)


def _groups(layers: list[str], by: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in layers:
        group = ".".join(name.split(".")[:2]) if by == "block" else name
        groups.setdefault(group, []).append(name)
    return groups


@dataclass(frozen=True, eq=False)
class _Krylov:
    """What m Lanczos steps know of an operator: the tridiagonal matrix T = basis H basis'.

    Attributes:
        alphas, betas: diagonal [m] and off-diagonal [m] of T; the last beta couples to basis vector m
            and is 0 when the Krylov space is exhausted.
        basis: orthonormal rows, of which m + 1 are filled.
    """

    alphas: list[float]
    betas: list[float]
    basis: Tensor

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Eigenvalues of T ascending [m], its eigenvectors [m, m] in columns, relative residuals [m]."""
        theta, vectors = eigh_tridiagonal(self.alphas, self.betas[:-1])
        bounds = abs(self.betas[-1] * vectors[-1])
        return theta, vectors, np.array([_relative(e, t) for e, t in zip(bounds, theta, strict=True)])


def _lanczos(op: SymmetricOperator, start: Tensor, steps: int) -> Iterator[_Krylov]:
    """Lanczos with full reorthogonalisation; yields after each of at most ``steps`` products."""
    steps = min(steps, op.n)
    basis = torch.empty(steps + 1, op.n, dtype=op.dtype, device=op.device)
    basis[0] = start / start.norm()
    krylov = _Krylov([], [], basis)
    for m in range(1, steps + 1):
        w = _matvec(op, basis[m - 1])
        krylov.alphas.append(float(basis[m - 1] @ w))
        negligible = 10 * torch.finfo(op.dtype).eps * float(w.norm())
        for _ in range(2):  # once leaves rounding errors of the size of the cancellation, twice does not
            w = w - (basis[:m] @ w) @ basis[:m]
        beta = float(w.norm())
        exhausted = m == op.n or beta <= negligible
        krylov.betas.append(0.0 if exhausted else beta)
        if not exhausted:
            basis[m] = w / beta
        yield krylov
        if exhausted:
            return


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} = {count}: give at least 1")


def _matvec(op: SymmetricOperator, v: Tensor) -> Tensor:
    product = op.matvec(v)
    if not product.isfinite().all():
        raise InputError("a Hessian-vector product is not finite: scores, weights or batches are out of range")
    return product


def _relative(error: float, value: float) -> float:
    """``error / |value|``, 0 / 0 being exact."""
    return float(error) / abs(value) if value else (math.inf if error else 0.0)


def _normal(op: SymmetricOperator, seed: int, purpose: str) -> Tensor:
    rng = generator(op.device, seed, purpose)
    return torch.randn(op.n, generator=rng, dtype=op.dtype, device=op.device)


def _signs(op: SymmetricOperator, probes: int, seed: int, purpose: str) -> Iterator[Tensor]:
    rng = generator(op.device, seed, purpose)
    for _ in range(probes):
        bits = torch.randint(0, 2, (op.n,), generator=rng, device=op.device)
        yield bits.to(op.dtype).mul_(2).sub_(1)


class _ScoresAlone(nn.Module):
    """What PyHessian sees as the network: parameters that are the scores, and inputs passed through.

    PyHessian switches the whole network to evaluation mode and clears all its gradients. Here that
    touches nothing but this shell; the network itself is run by the criterion.
    """

    def __init__(self, leaves: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.leaves = nn.ParameterList(leaves)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def _pyhessian(
    op: SymmetricOperator, *, iterations: int, tolerance: float | None, seed: int, shift: float
) -> Eigenpair:
    """The dominant eigenpair by PyHessian; of H - shift I, by adding -shift/2 |s - s0|^2 to the loss."""
    hessian = op.op if isinstance(op, Projected) else op
    if not isinstance(hessian, ScoreHessian):
        raise InputError("method = 'pyhessian' measures a ScoreHessian; use power or lanczos")
    if hessian.weights is not None and distributed.world() > 1:
        raise InputError("method = 'pyhessian' runs in one process; use power or lanczos")
    from pyhessian import hessian as PyHessian

    calls = 0

    def criterion_of(loss_of: Callable[[Any], Tensor], leaves: list[nn.Parameter]) -> Callable[..., Tensor]:
        def criterion(_inputs: Tensor, index: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            ball = sum((leaf - leaf.detach()).square().sum() for leaf in leaves)
            return loss_of(hessian.batches[int(index)]) - 0.5 * shift * ball

        return criterion

    # PyHessian draws from the global generator, weights batches by inputs.size(0), and as a list of
    # batches frees each product's graph at once, where its single-batch form keeps it for good.
    loader = [(batch[0], torch.tensor(i)) for i, batch in enumerate(hessian.batches)]
    devices = [op.device] if op.device.type == "cuda" else []
    with hessian.surrogate() as (leaves, loss_of), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
        torch.manual_seed(derive_seed(seed, "pyhessian"))
        if isinstance(op, Projected):  # what it sees of the gradient, and so of its derivative, is projected
            kept = unflatten(op.expand(torch.ones(op.n, dtype=op.dtype, device=op.device)), leaves)
            for leaf, part in zip(leaves, kept, strict=True):
                leaf.register_hook(lambda gradient, part=part: gradient * part)
        peer = PyHessian(
            _ScoresAlone(leaves),
            criterion_of(loss_of, leaves),
            dataloader=loader,
            cuda=op.device.type == "cuda",
        )
        values, vectors = peer.eigenvalues(maxIter=iterations, tol=tolerance or 0.0)
    hessian.hvps += calls
    value = values[0] + shift
    vector = flatten(vectors[0])
    if isinstance(op, Projected):
        vector = op.restrict(vector)
    vector = vector / vector.norm()
    product = _matvec(op, vector)
    residual = _relative(float((product - value * vector).norm()), value)
    converged = residual <= CONVERGED
    return Eigenpair(value, vector, product, residual, converged, calls // len(hessian.batches) + 1)
