"""Is a difference between two arms beyond chance? Seeds are the unit; images say how exact a seed's number is.

Networks trained from two seeds differ by points, so that one network of each arm tells nothing of the methods. Every
interval here is over paired differences of seeds; with fewer than three there is none, and :func:`mcnemar` says whether
two *networks* differ.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from scipy.stats import binomtest, nct, t

from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["clean", "robust", "gap"]
"""Of an evaluation: right on the image, under the attack, or the one and not the other (Sect. 4.2)."""

LEVEL = 0.95
POWER = 0.8
LEAST_SEEDS = 3
MOST_SEEDS = 10_000
"""More seeds than anyone runs: a difference that takes more is out of reach."""
SPREAD = 1e-9
"""Least spread over the difference that is no rounding error."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean of a metric's differences, second arm minus first, over units: seeds, or sets of test images.

    Attributes:
        mean: in the metric's unit.
        by_unit: the differences.
        sd: their standard deviation (n - 1), NaN for one.
        images_variance: variance of ``mean`` that comes from test images which all units share, so that more units
            do not lower it.
        standard_error: of ``mean``, from both; NaN for one unit.
        freedom: degrees of freedom of ``standard_error``.
    """

    mean: float
    by_unit: tuple[float, ...] = field(repr=False)
    sd: float
    images_variance: float
    standard_error: float
    freedom: float

    @property
    def is_testable(self) -> bool:
        """Whether there are three units, and a spread to hold a difference against.

        Units that differ by the same are few images or a rounded metric: their spread is unknown and not 0.
        """
        return len(self.by_unit) >= LEAST_SEEDS and (self.mean == 0 or self.standard_error > SPREAD * abs(self.mean))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval of ``mean``; None with fewer than three units, or where they show no spread."""
        if not self.is_testable:
            return None
        half = float(t.ppf((1 + LEVEL) / 2, self.freedom)) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """Two-sided p-value of no difference, by the t-test; None where there is no interval."""
        if not self.is_testable:
            return None
        if self.standard_error == 0:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / self.standard_error, self.freedom))

    @property
    def beyond_chance(self) -> bool:
        """Whether there is an interval, and it excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def seeds_needed(self, effect: float | None = None, tests: int = 1) -> int | None:
        """Count the seeds that find a true difference in 80 of 100 trials, by the noncentral t distribution.

        The spread between seeds is taken as it was seen, so with few seeds this is rough itself.

        Args:
            effect: the true difference, by default the one that was seen.
            tests: how many are held together, of which this is taken for the first that Holm's correction looks at.

        Returns:
            At least three; None where no number of them does: the difference is 0, the shared images are too few, or
            the units show no spread.
        """
        effect = abs(self.mean if effect is None else effect)
        spreads = self.standard_error > SPREAD * abs(self.mean)  # NaN of one unit
        if not spreads or effect == 0 or self._power(effect, MOST_SEEDS, tests) < POWER:
            return None
        too_few, enough = LEAST_SEEDS - 1, MOST_SEEDS
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._power(effect, middle, tests) < POWER:
                too_few = middle
            else:
                enough = middle
        return enough

    def scaled(self, factor: float) -> "PairedDifference":
        """Give the same in another unit, such as percent."""
        return PairedDifference(
            factor * self.mean, tuple(factor * d for d in self.by_unit), factor * self.sd,
            factor**2 * self.images_variance, factor * self.standard_error, self.freedom,
        )  # fmt: skip

    def _power(self, effect: float, seeds: int, tests: int) -> float:
        error = math.sqrt(self.sd**2 / seeds + self.images_variance)
        limit = t.isf((1 - LEVEL) / tests / 2, seeds - 1)
        shifted = nct(seeds - 1, effect / error)
        return float(shifted.sf(limit) + shifted.cdf(-limit))


Seed = TypeVar("Seed", int, tuple[int, int])
"""A seed, or a seed and the fold that it was tested on."""


@dataclass(frozen=True)
class Comparison(Result, Generic[Seed]):
    """The second arm's accuracy minus the first's, in [-1, 1].

    Attributes:
        difference: over seeds, or over sets of test images where seeds have sets of their own.
        mcnemar: p-value of :func:`mcnemar` by seed; it speaks of the seed's two networks alone.
    """

    by: ClassVar[str] = "seed"

    difference: PairedDifference
    mcnemar: dict[Seed, float]

    def row(self) -> dict[str, Any]:
        """Give the mean difference, its interval (None below three units), p-value and number of units."""
        low, high = self.difference.interval or (None, None)
        return {
            "mean": self.difference.mean,
            "low": low,
            "high": high,
            "p": self.difference.p,
            "beyond_chance": self.difference.beyond_chance,
            "units": len(self.difference.by_unit),
        }

    def details(self) -> dict[str, Any]:
        """Give McNemar's p-value of each seed."""
        return {"mcnemar": self.mcnemar}

    def draw(self, axes: "Axes") -> None:
        """Draw the difference of each unit, and their mean with its interval."""
        values: tuple[float, ...] = self.difference.by_unit
        style: dict[str, Any] = {**look(0), "marker": "D"}
        axes.plot(values, range(len(values)), "o", color="0.5")
        mean, interval = self.difference.mean, self.difference.interval
        reach = None if interval is None else [[mean - interval[0]], [interval[1] - mean]]
        axes.errorbar([mean], [len(values)], xerr=reach, capsize=3, **style)
        axes.axvline(0, color="0.3", linewidth=0.8, zorder=1)
        axes.set_yticks(range(len(values) + 1), [*(f"unit {i + 1}" for i in range(len(values))), "mean"])
        axes.set_ylim(len(values) + 0.5, -0.5)
        axes.set_xlabel("accuracy, second − first")


def compare(
    first: Mapping[Seed, Evaluation], second: Mapping[Seed, Evaluation], kind: Kind = "robust"
) -> Comparison[Seed]:
    """Compare two arms over the seeds that both have.

    Where all seeds are tested on the same images, the images' part in the variance is added
    (:func:`images_variance`). Where there are several sets of images, as the folds of a cross-validation, the mean over
    the seeds of a set is a unit.

    Raises:
        InputError: if they share no seed, were evaluated on other images or by another attack, or if the sets of
            images of two seeds overlap in part.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise InputError("the two arms have no seed in common; run both with the same seeds")
    by_images: dict[tuple[Any, ...], list[np.ndarray]] = {}
    tests = {}
    for seed in seeds:
        check_comparable(first[seed], second[seed], f"seed {seed}")
        a, b = correctness(first[seed], kind), correctness(second[seed], kind)
        by_images.setdefault(first[seed].images, []).append(b - a)
        tests[seed] = mcnemar(a == 1, b == 1)
    splits = [images[:2] for images in by_images]
    if len({"fold" in dict(options) for _, options in splits}) > 1:
        raise InputError(
            "some seeds were tested on a fold and others on the usual split, which overlap; compare one kind"
        )
    if len(splits) > len(set(splits)):
        raise InputError("seeds were tested on different numbers of the same images; evaluate all with the same n")
    if len(by_images) == 1:
        (differences,) = by_images.values()
        shared = np.stack(differences)
        return Comparison(paired_difference(shared.mean(axis=1).tolist(), shared), tests)
    units = [float(np.mean(differences)) for differences in by_images.values()]
    return Comparison(paired_difference(units), tests)


def correctness(evaluation: Evaluation, kind: Kind) -> np.ndarray:
    """Give each image's term of an accuracy or the gap, [n] in {-1, 0, 1}; -1 where it is right under attack alone."""
    clean: np.ndarray = evaluation.clean.astype(int)
    robust: np.ndarray = evaluation.robust.astype(int)
    gap: np.ndarray = clean - robust
    return {"clean": clean, "robust": robust, "gap": gap}[kind]


def paired_difference(by_unit: Sequence[float], shared: np.ndarray | None = None) -> PairedDifference:
    """Estimate the mean of paired differences and its standard error.

    Args:
        by_unit: the differences, second arm minus first, one for each unit.
        shared: where all units were tested on the same images, what each of these gave, [units, images]; ``by_unit`` is
            its mean over images.
    """
    n = len(by_unit)
    mean = float(np.mean(by_unit))
    if n < 2:
        return PairedDifference(mean, tuple(by_unit), math.nan, 0.0, math.nan, 0.0)
    variance = float(np.var(by_unit, ddof=1))
    between = variance / n
    images, freedom = (0.0, n - 1.0) if shared is None else images_variance(shared)
    # Welch and Satterthwaite: the degrees of freedom of a sum of two estimated variances.
    total = between + images
    freedom = total**2 / (between**2 / (n - 1) + images**2 / freedom) if total else n - 1.0
    return PairedDifference(mean, tuple(by_unit), math.sqrt(variance), images, math.sqrt(total), freedom)


def images_variance(shared: np.ndarray) -> tuple[float, float]:
    """Estimate how far the mean difference rests on the images drawn, which more seeds do not lower.

    Of the two-way random effects model d_si = m + seed_s + image_i + rest_si, the variance of image_i over the number
    of images, by analysis of variance: (MS_images - MS_rest) / (seeds * images), or 0. The spread between seeds has the
    rest in it already.

    Args:
        shared: differences in correctness, [seeds, images].

    Returns:
        The variance and its degrees of freedom, at least 1.
    """
    seeds, n = shared.shape
    by_image = shared.mean(axis=0, keepdims=True)
    rest = shared - shared.mean(axis=1, keepdims=True) - by_image + shared.mean()
    images_mean_square = seeds * float(np.square(by_image - shared.mean()).sum()) / max(n - 1, 1)
    rest_mean_square = float(np.square(rest).sum()) / max((n - 1) * (seeds - 1), 1)
    excess = images_mean_square - rest_mean_square
    if excess <= 0 or n < 2:
        return 0.0, 1.0
    spread = images_mean_square**2 / (n - 1) + rest_mean_square**2 / ((n - 1) * (seeds - 1))
    return excess / (seeds * n), max(excess**2 / spread, 1.0)


def tested(p_values: Iterable[float | None]) -> int:
    """Count the tests that :func:`holm` holds together, at least 1."""
    return max(1, sum(p is not None for p in p_values))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that all of a table hold together (Holm 1979); None is no test, counts as none and stays."""
    known = {index: p for index, p in enumerate(p_values) if p is not None}
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(known, key=known.__getitem__)):
        highest = max(highest, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = highest
    return adjusted


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Test whether two networks differ in correctness [n] on the same images: two-sided exact (McNemar 1947).

    Of the images that one network alone classifies correctly, each has half if they are equally accurate.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def check_comparable(first: Evaluation, second: Evaluation, where: str) -> None:
    """Check that two evaluations are of the same images under the same attack.

    Raises:
        InputError: that begins with ``where`` and names what differs.
    """
    if first.images != second.images:
        raise InputError(
            f"{where}: the two arms were evaluated on other images; evaluate both with the same n and fold"
        )
    for name in ("attack", "norm", "eps"):
        a, b = first.about.get(name), second.about.get(name)
        if a != b:
            raise InputError(f"{where}: evaluated with {name} {a} and {b}; evaluate both alike")
