"""Is a difference beyond chance: against binomial sums by hand, the normal approximation, and a true null."""

from math import comb

import numpy as np
import pytest

from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.statistics import compare, mcnemar, paired_bootstrap


def evaluation(robust, *, clean=None, index=None, attack="autoattack", eps="8/255"):
    n = len(robust)
    robust = np.asarray(robust, bool)
    return Evaluation(
        index=np.arange(n) if index is None else index,
        label=np.zeros(n, int),
        clean=robust if clean is None else np.asarray(clean, bool),
        robust=robust,
        noise=robust,
        zero_gradient=np.zeros(n, bool),
        about={"attack": attack, "norm": "Linf", "eps": eps},
    )


@pytest.mark.parametrize(("only_first", "only_second"), [(7, 2), (1, 9), (4, 4), (0, 5)])
def test_mcnemar_is_the_binomial_sum(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True] * 20 + [False] * 10)
    second = np.array([False] * only_first + [True] * only_second + [True] * 20 + [False] * 10)
    n, less = only_first + only_second, min(only_first, only_second)
    tails = 2 * sum(comb(n, k) for k in range(less + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(tails, 1.0), rel=1e-12)


def test_mcnemar_without_discordant_images_finds_nothing():
    same = np.array([True, False, True])
    assert mcnemar(same, same) == 1.0


def test_bootstrap_of_one_seed_is_the_normal_interval_on_many_images():
    rng = np.random.default_rng(0)
    difference = rng.choice([-1, 0, 1], size=20_000, p=[0.05, 0.85, 0.10])
    low, high = paired_bootstrap([difference])
    half = 1.959964 * difference.std() / np.sqrt(len(difference))
    assert low == pytest.approx(difference.mean() - half, abs=0.03 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.03 * half)


def test_bootstrap_of_many_seeds_has_the_variance_of_seeds_images_and_what_is_left():
    """The pigeonhole bootstrap's variance in a crossed design (Owen 2007), for both factors drawn at once."""
    rng = np.random.default_rng(1)
    rates = np.clip(rng.normal(0.1, 0.03, 40), 0.01, 0.3)
    seeds = np.stack([rng.choice([0, 1], size=400, p=[1 - rate, rate]) for rate in rates])
    low, high = paired_bootstrap(list(seeds))
    by_seed, by_image = seeds.mean(axis=1, keepdims=True), seeds.mean(axis=0, keepdims=True)
    left = (seeds - by_seed - by_image + seeds.mean()).var() / seeds.size
    variance = by_seed.var() / len(seeds) + by_image.var() / seeds.shape[1] + left
    assert high - low == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=0.04)


def test_seeds_that_agree_on_every_image_know_no_more_than_one():
    one = np.random.default_rng(4).choice([-1, 0, 1], size=300, p=[0.1, 0.7, 0.2])
    alone, thrice = paired_bootstrap([one]), paired_bootstrap([one, one, one])
    assert thrice == pytest.approx(alone, abs=0.01)
    assert alone[1] - alone[0] > 0.1


@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_covers_a_null_about_as_often_as_it_says(seeds):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        first, second = rng.random((2, seeds, 300)) < 0.5
        low, high = paired_bootstrap(list(second.astype(int) - first), replications=600)
        covered += low <= 0 <= high
    # 95 % of 400 is 380, four standard deviations 17; over seeds, images count at both levels, which is cautious.
    assert covered >= 363
    if seeds == 1:
        assert covered <= 397


def test_both_arms_are_drawn_alike():
    """Two arms that differ on one image in a hundred: the interval is that of the pairs, not of two samples."""
    first = np.random.default_rng(3).random(2000) < 0.5
    second = first.copy()
    second[:20] = ~second[:20]
    found = compare({0: evaluation(first)}, {0: evaluation(second)})
    assert found.high - found.low < 0.011  # of two independent samples it would be 0.062


def test_compare_takes_the_seeds_that_both_have_and_the_kind_that_is_asked_for():
    n = 400
    worse, better = np.arange(n) < 100, np.arange(n) < 200
    first = {0: evaluation(worse, clean=better), 1: evaluation(worse, clean=better), 7: evaluation(better)}
    second = {1: evaluation(better), 0: evaluation(better), 8: evaluation(worse)}
    robust = compare(first, second)
    assert robust.difference == pytest.approx(0.25)
    assert robust.beyond_chance
    assert 0.2 < robust.low < 0.25 < robust.high < 0.3
    assert sorted(robust.mcnemar) == [0, 1]
    assert robust.mcnemar[0] == pytest.approx(2 * 0.5**100)
    clean = compare(first, second, "clean")
    assert (clean.difference, clean.low, clean.high, clean.beyond_chance) == (0, 0, 0, False)


@pytest.mark.parametrize(
    ("second", "word"),
    [
        ({0: evaluation([True, False], index=np.array([0, 2]))}, "other images"),
        ({0: evaluation([True, False, True])}, "other images"),
        ({0: evaluation([True, False], attack="pgd-50")}, "pgd-50"),
        ({0: evaluation([True, False], eps="4/255")}, "4/255"),
        ({1: evaluation([True, False])}, "no seed in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(second, word):
    with pytest.raises(InputError, match=word):
        compare({0: evaluation([True, True])}, second)
