"""Is a difference in accuracy beyond chance: exact McNemar by seed, paired bootstrap over seeds and images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import Evaluation

Kind = Literal["clean", "robust"]

REPLICATIONS = 10_000
CHUNK = 250
"""Replications drawn at once: of 50,000 images they take 100 MB."""

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """The second arm's accuracy minus the first's, on the same images, in [-1, 1].

    Attributes:
        difference: mean over seeds.
        low, high: ends of its 95 % interval, of :func:`paired_bootstrap`.
        mcnemar: p-value of :func:`mcnemar` by seed.
    """

    difference: float
    low: float
    high: float
    mcnemar: dict[int, float]

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def compare(first: Mapping[int, Evaluation], second: Mapping[int, Evaluation], kind: Kind = "robust") -> Comparison:
    """Compare two arms over the seeds that both have.

    Raises:
        InputError: if they share no seed, or were evaluated on other images or by another attack.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise InputError("the two arms have no seed in common; run both with the same seeds")
    correct = []
    for seed in seeds:
        _check_comparable(first[seed], second[seed], seed)
        correct.append((getattr(first[seed], kind), getattr(second[seed], kind)))
    differences = [np.subtract(b, a, dtype=int) for a, b in correct]
    low, high = paired_bootstrap(differences)
    return Comparison(
        difference=float(np.mean([d.mean() for d in differences])),
        low=low,
        high=high,
        mcnemar={seed: mcnemar(a, b) for seed, (a, b) in zip(seeds, correct, strict=True)},
    )


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact McNemar test of correctness [n] on the same images (McNemar 1947, binomial form).

    Of the images that one arm alone classifies correctly, each arm has half if they are equally accurate.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def paired_bootstrap(
    differences: list[np.ndarray], *, replications: int = REPLICATIONS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean difference: seeds and images are drawn with replacement, crossed.

    All seeds are tested on the same images, so an image that is drawn is drawn for all of them, and for both arms
    alike. With one seed, the interval knows of the images alone and nothing of the luck of training; with few, it
    knows little of it.

    Args:
        differences: for each seed, correctness of the second arm minus that of the first on the same images, [n] in
            {-1, 0, 1}.
    """
    rng = np.random.default_rng(seed)
    by_seed = np.stack(differences).astype(float)
    seeds, n = by_seed.shape
    means = []
    for size in [CHUNK] * (replications // CHUNK) + [replications % CHUNK]:
        images = rng.multinomial(n, np.full(n, 1 / n), size=size)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        means.append(((images @ by_seed.T) * drawn).sum(axis=1) / (n * seeds))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_comparable(first: Evaluation, second: Evaluation, seed: int) -> None:
    if not np.array_equal(first.index, second.index):
        raise InputError(f"seed {seed}: the two arms were evaluated on other images; evaluate both with the same n")
    for name in ("attack", "norm", "eps"):
        a, b = first.about.get(name), second.about.get(name)
        if a != b:
            raise InputError(f"seed {seed}: evaluated with {name} {a} and {b}; evaluate both alike")
