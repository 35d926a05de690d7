"""Sharpness as a loss difference in score space (Eq. 12), found from below.

    max over |v| <= rho c of L(s + v) - L(s),    c = |s| element-wise, or 1

v moves scores across their layer's threshold, so the mask itself changes; to scores that stay on
their side of it the loss is blind. With c = |s| a score of exactly 0 cannot move.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_core.distributed.share import gather_in_order, own_items
from s2ap_core.errors import InputError
from s2ap_core.modes import gpu_arithmetic, statistics
from s2ap_core.seeds import derive_seed, generator
from s2ap_diag.curvature.ascent import Norm, Place, auto_pgd
from s2ap_diag.curvature.batches import held, samples_in
from s2ap_diag.curvature.deviations import standard_deviation, standard_error
from s2ap_diag.curvature.exchange import exchange_ascent
from s2ap_diag.curvature.hessian import BatchNormMode, Loss, batch_norm_mode
from s2ap_diag.curvature.landscape import Landscape, Recraft, Scale
from s2ap_diag.curvature.operators import check_counts
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ascent = Literal["exchange", "auto-pgd"]


@dataclass(frozen=True)
class LossDifference(Result):
    """Sharpness at one rho, in units of the loss; means over the batches weigh each by its samples.

    Attributes:
        mean, std, standard_error: of the worst case found in each batch; the last two are None for one batch.
            An ascent finds a lower bound: the maximum is at least that.
        per_batch: the worst case found in each batch, never below 0 as v = 0 is in the ball.
        average_case: of random v, uniform in the ball.
        average_case_standard_error: over the batches, each with draws of its own; None for one batch.
        average_case_monte_carlo_error: what the choice of the draws alone contributes; None for one draw.
        reference: L(s) of each batch.
        flips: mask bits that change under the worst v of each batch, out of ``n_scores``.
        flips_mean, flips_standard_error: of those.
        forward_passes, backward_passes: each over one batch; without those of ``recraft``. L(s) and its
            gradient, which all radii share, are counted at the smallest.
        batch_size: samples in the first batch.
        recrafted: whether the adversarial examples were made anew at each step.
    """

    by: ClassVar[str] = "batch"

    rho: float
    mean: float
    std: float | None
    standard_error: float | None
    per_batch: tuple[float, ...]
    average_case: float
    average_case_standard_error: float | None
    average_case_monte_carlo_error: float | None
    reference: tuple[float, ...]
    flips: tuple[int, ...]
    flips_mean: float
    flips_standard_error: float | None
    n_scores: int
    forward_passes: int
    backward_passes: int
    norm: str
    scale: str
    ascent: str
    steps: int
    restarts: int
    draws: int
    recrafted: bool
    batch_norm: str
    batches: int
    batch_size: int

    def draw(self, axes: "Axes") -> None:
        """Draw the worst case found in each batch, their mean with its standard error, and the average case."""
        x, style = range(len(self.per_batch)), look(0)
        axes.plot(x, self.per_batch, label="worst found", **style | {"linestyle": ""})  # type: ignore[arg-type]
        axes.axhline(self.mean, color=style["color"], label="mean")
        if self.standard_error is not None:
            low, high = self.mean - self.standard_error, self.mean + self.standard_error
            axes.axhspan(low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.axhline(self.average_case, color=look(1)["color"], linestyle="--", label="random v")
        axes.set(xlabel="batch", ylabel=f"loss difference, at least (ρ = {self.rho:g})", xticks=list(x))
        axes.legend()


def loss_difference(
    model: nn.Module, loss: Loss, batches: Iterable[Any], *, rho: float, **options: Any
) -> LossDifference:
    """Measure the loss difference at one radius; options and errors as of :func:`loss_differences`."""
    return loss_differences(model, loss, held(batches), (rho,), **options)[0]


def loss_differences(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    rhos: Sequence[float],
    *,
    ascent: Ascent | None = None,
    steps: int = 20,
    restarts: int = 2,
    norm: Norm = "linf",
    scale: Scale = "score",
    recraft: Recraft | None = None,
    draws: int = 5,
    batch_norm: BatchNormMode = "running",
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[LossDifference, ...]:
    """Measure worst-case and average-case loss differences in score space (Eq. 12), in the order of ``rhos``.

    The ball is ``|v / c| <= rho`` in ``norm``; the ascent runs in u = v / c, so that all scores move at the
    same relative speed. At each radius it begins from the worst v of the radius below, so that what it finds in a
    batch never falls as rho grows. The model is left bit for bit as it was found. Several processes of a run,
    which hold the same batches, work on every ``world``-th of them each, and all of them get the result.

    Args:
        loss: ``loss(model, batch) -> scalar``, the mean over the batch's samples.
        batches: as :class:`s2ap_diag.curvature.hessian.ScoreHessian` takes them.
        rhos: radii, relative to c.
        ascent: ``exchange`` goes from mask to mask (:mod:`s2ap_diag.curvature.exchange`), in the linf ball alone,
            where it is the default; ``auto-pgd`` is the paper's.
        steps, restarts: ``auto-pgd`` makes ``restarts`` ascents of ``steps`` steps, all but the first from random
            points. ``exchange`` evaluates as many points, and starts again wherever no exchange helps.
        scale: c = |s| (``score``) or 1 (``one``).
        recraft: ``recraft(model, batch) -> batch`` makes the adversarial examples anew before each
            evaluation, on the model at s + v (Stutz et al. 2021); None holds those of the batch fixed.
        draws: random v per batch for the average case.
        seed: of the random points.
        on_step: called after each radius of each batch that this process works on.

    Raises:
        InputError: for an option out of range, a network without scores, or a loss that is not finite.
    """
    ascent = ascent or ("auto-pgd" if norm == "l2" else "exchange")
    options = _Options(ascent, steps, restarts, norm, scale, draws, recraft is not None, statistics(model, batch_norm))
    for rho in rhos:
        if not (rho >= 0 and math.isfinite(rho)):
            raise InputError(f"rho = {rho}: give a finite radius of at least 0")
    batches = held(batches)
    if not batches:
        raise InputError("no batch to measure on: give at least one")
    landscape = Landscape(model, loss, scale, recraft)
    search = _Search(landscape, options, sorted(set(rhos)), seed)
    with torch.enable_grad(), gpu_arithmetic(tf32=False), batch_norm_mode(model, batch_norm):
        own = [search.measure(index, batch, on_step) for index, batch in own_items(list(enumerate(batches)))]
    measured = gather_in_order(own)
    counts = [samples_in(batch) for batch in batches]
    return tuple(_summary(rho, measured, options, len(landscape.origin), counts) for rho in rhos)


@dataclass(frozen=True)
class _Options:
    """What a :class:`LossDifference` says of how it was found."""

    ascent: Ascent
    steps: int
    restarts: int
    norm: Norm
    scale: Scale
    draws: int
    recrafted: bool
    batch_norm: str

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, restarts=self.restarts, draws=self.draws)
        for name, kind in {"norm": Norm, "scale": Scale, "ascent": Ascent}.items():
            chosen = getattr(self, name)
            if chosen not in get_args(kind):
                raise InputError(f"{name} = {chosen!r}: choose {' or '.join(get_args(kind))}")
        if self.ascent == "exchange" and self.norm == "l2":
            raise InputError("ascent = 'exchange' keeps to the linf ball: choose auto-pgd for the l2 ball")


class _Found(NamedTuple):
    """What one batch gave at one radius."""

    worst: float  # rise of the loss
    random: list[float]  # its rise under each random v
    flips: int
    forward_passes: int
    backward_passes: int


class _Measured(NamedTuple):
    """What one batch gave: L(s), and what was found at each radius."""

    reference: float
    at: dict[float, _Found]


class _Search:
    """Looks for the worst and the average case of one batch after the other, at radii in ascending order."""

    def __init__(self, landscape: Landscape, options: _Options, rhos: Sequence[float], seed: int) -> None:
        self.landscape, self.options, self.rhos, self.seed = landscape, options, rhos, seed
        self.reaches = {rho: landscape.reach(rho) for rho in rhos} if options.ascent == "exchange" else {}

    def measure(self, index: int, batch: Any, on_step: Callable[[], None]) -> _Measured:
        landscape = self.landscape
        worst, kept = landscape.place(batch, landscape.origin), landscape.kept
        measured = _Measured(worst.value, {})
        for rho in self.rhos:
            worst = self._climb(index, batch, worst, kept, rho)
            kept = landscape.mask(worst.u)
            rng = generator(kept.device, self.seed, "average-case", index)
            drawn = [landscape.value(batch, self._draw(rho, rng)) for _ in range(self.options.draws)]
            random = [value - measured.reference for value in drawn]
            flips = int((kept != landscape.kept).sum())
            measured.at[rho] = _Found(worst.value - measured.reference, random, flips, *landscape.passes())
            on_step()
        return measured

    def _climb(self, index: int, batch: Any, start: Place, kept: Tensor, rho: float) -> Place:
        """Find the worst place in the ball of radius ``rho``, ``start`` if there is no worse one; kept is its mask."""
        options = self.options
        parts = (self.seed, "loss-difference", index, f"{rho:g}")
        if options.ascent == "exchange":
            place_above = partial(self.landscape.place_above, batch)
            drawing = np.random.default_rng(derive_seed(*parts))
            return exchange_ascent(
                place_above, self.reaches[rho], start, kept, options.steps * options.restarts, drawing
            )
        rng = generator(kept.device, *parts)
        place_at = partial(self.landscape.place, batch)
        best = start
        for i in range(options.restarts):
            first = place_at(self._draw(rho, rng)) if i else start
            climbed = auto_pgd(place_at, first, radius=rho, norm=options.norm, steps=options.steps)
            best = max(best, climbed, key=lambda place: place.value)
        return best

    def _draw(self, rho: float, rng: torch.Generator) -> Tensor:
        return _uniform(self.landscape.origin, rho, self.options.norm, rng)


def _summary(
    rho: float, measured: Sequence[_Measured], options: _Options, n_scores: int, counts: Sequence[int]
) -> LossDifference:
    """Average over the batches, of so many samples each."""
    weights = np.array(counts) / sum(counts)
    worst, random, flips, forward, backward = zip(*(batch.at[rho] for batch in measured), strict=True)
    average = np.mean(random, axis=1)
    by_chance = None
    if options.draws > 1:
        by_chance = math.sqrt(weights**2 @ np.var(random, axis=1, ddof=1) / options.draws)
    return LossDifference(
        rho=rho,
        mean=float(weights @ worst),
        std=standard_deviation(worst, counts),
        standard_error=standard_error(worst, counts),
        per_batch=worst,
        average_case=float(weights @ average),
        average_case_standard_error=standard_error(average, counts),
        average_case_monte_carlo_error=by_chance,
        reference=tuple(batch.reference for batch in measured),
        flips=flips,
        flips_mean=float(weights @ flips),
        flips_standard_error=standard_error(flips, counts),
        n_scores=n_scores,
        forward_passes=sum(forward),
        backward_passes=sum(backward),
        batches=len(counts),
        batch_size=counts[0],
        **asdict(options),
    )


def _uniform(like: Tensor, radius: float, norm: Norm, rng: torch.Generator) -> Tensor:
    """Draw a point uniformly from the ball of ``radius`` around 0."""
    if norm == "linf":
        unit = torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)
        return radius * (2 * unit - 1)
    direction = torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
    distance = torch.rand((), generator=rng, dtype=torch.float64, device=like.device) ** (1 / like.numel())
    return direction * (radius * float(distance) / float(direction.norm()))
