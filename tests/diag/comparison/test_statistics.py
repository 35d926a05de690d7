"""Is a difference beyond chance: against binomial sums by hand, scipy's tests, and simulated equal arms."""

from math import comb

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.comparison.statistics import compare, holm, images_variance, mcnemar, paired_difference


def evaluation(robust, *, clean=None, index=None, attack="autoattack", eps="8/255", fold=None):
    n = len(robust)
    robust = np.asarray(robust, bool)
    return Evaluation(
        index=np.arange(n) if index is None else index,
        label=np.zeros(n, int),
        clean=robust if clean is None else np.asarray(clean, bool),
        robust=robust,
        noise=robust,
        zero_gradient=np.zeros(n, bool),
        about={"attack": attack, "norm": "Linf", "eps": eps} | ({} if fold is None else {"options": {"fold": fold}}),
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


def test_disjoint_sets_of_images_give_the_paired_t_test():
    """Five folds, each image in one of them: scipy's paired t-test on the folds' accuracies."""
    rng = np.random.default_rng(3)
    rates = rng.normal([0.6, 0.68], 0.03, (5, 2))
    arms = [{fold: evaluation(rng.random(80) < rates[fold, arm], fold=fold) for fold in range(5)} for arm in range(2)]
    found = compare(*arms).difference
    accuracies = [[evaluated.robust.mean() for evaluated in arm.values()] for arm in arms]
    peer = ttest_rel(accuracies[1], accuracies[0])
    assert found.mean == pytest.approx(peer.statistic * found.standard_error)
    assert found.p == pytest.approx(peer.pvalue)
    assert found.interval == pytest.approx(tuple(peer.confidence_interval()))
    assert found.beyond_chance == (peer.pvalue < 0.05)


def test_folds_and_the_usual_split_overlap_and_are_not_mixed():
    mixed = [{0: evaluation([True, False]), 1: evaluation([True, True], fold=1)} for _ in range(2)]
    with pytest.raises(InputError, match="overlap"):
        compare(*mixed)


def test_two_seeds_of_a_fold_are_one_unit():
    rng = np.random.default_rng(4)
    arms = [{seed: evaluation(rng.random(50) < 0.6, fold=seed % 3) for seed in range(6)} for _ in range(2)]
    accuracies = np.array([[arm[seed].robust.mean() for seed in range(6)] for arm in arms])
    by_fold = (accuracies[1] - accuracies[0]).reshape(2, 3).mean(axis=0)
    assert compare(*arms).difference.by_unit == pytest.approx(by_fold)


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_there_is_no_interval(seeds):
    first, second = np.arange(400) < 100, np.arange(400) < 200
    found = compare({s: evaluation(first) for s in range(seeds)}, {s: evaluation(second) for s in range(seeds)})
    assert found.difference.mean == pytest.approx(0.25)
    assert (found.difference.interval, found.difference.p, found.difference.beyond_chance) == (None, None, False)
    assert found.mcnemar[0] == pytest.approx(2 * 0.5**100)


def test_the_variance_of_shared_images_is_found():
    """Over many test sets the mean difference varies as the two parts together say."""
    rng = np.random.default_rng(5)
    seeds, n, claimed, means = 4, 150, [], []
    for _ in range(800):
        favour = rng.choice([-0.5, 0.5], size=n)  # which images an arm is better on
        luck = rng.normal(0, 0.02, (seeds, 1))
        shared = np.sign(favour + luck) * (rng.random((seeds, n)) < np.abs(favour + luck))
        found = paired_difference(shared.mean(axis=1).tolist(), shared)
        claimed.append(found.standard_error**2)
        means.append(found.mean)
    assert np.mean(claimed) == pytest.approx(np.var(means), rel=0.12)
    assert images_variance(shared)[0] > 0.5 * claimed[-1]


def rejections(rng, *, seeds: int, spread: float, images: int, favour: float = 0.0, trials: int = 1500) -> float:
    """The share of trials in which two equal arms are found to differ.

    Args:
        spread: standard deviation between the seeds of one arm, of its accuracy.
        favour: of the probability that an image is right, by how much it differs between the arms, either way.
    """
    rejected = 0
    for _ in range(trials):
        right = rng.beta(1.2, 0.8, images).astype(np.float32)  # some images are hard for every network
        favoured = np.float32(favour) * rng.choice([-1, 1], size=images).astype(np.float32)
        luck = rng.normal(0, spread, (2, seeds, 1)).astype(np.float32)
        arms = np.stack([right - favoured, right + favoured])[:, None] + luck
        first, second = rng.random(arms.shape, dtype=np.float32) < arms
        shared = second.astype(np.int8) - first.astype(np.int8)
        rejected += paired_difference(shared.mean(axis=1).tolist(), shared).beyond_chance
    return rejected / trials


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [0.0, 0.024, 0.04])
def test_equal_arms_are_called_different_as_rarely_as_it_says(seeds, spread):
    found = rejections(np.random.default_rng(6), seeds=seeds, spread=spread, images=400)
    assert found <= 0.07
    if spread:
        assert found >= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.024), (5, 0.04), (10, 0.024)])
def test_equal_arms_are_not_told_apart_on_ten_thousand_images_either(seeds, spread):
    found = rejections(np.random.default_rng(7), seeds=seeds, spread=spread, images=10_000, trials=600)
    assert found <= 0.07
    if spread:
        assert found >= 0.02


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_arms_that_are_good_at_other_images_are_not_told_apart_by_their_number(seeds):
    """What more seeds do not average out: a t-test of the seeds alone is wrong in 16, 30 and 51 % of cases."""
    assert rejections(np.random.default_rng(8), seeds=seeds, spread=0.005, images=400, favour=0.3) <= 0.07


def test_power_is_what_repeated_trials_find():
    rng = np.random.default_rng(9)
    first = paired_difference([0.05, 0.01, 0.03, -0.01])
    needed = first.seeds_needed(0.02)
    assert needed is not None

    def found(seeds: int) -> float:
        trials = rng.normal(0.02, first.sd, (4000, seeds))
        return float((ttest_1samp(trials, 0, axis=1).pvalue < 0.05).mean())

    assert found(needed) >= 0.78
    assert found(needed - 1) < 0.82
    assert first.seeds_needed() == first.seeds_needed(first.mean)
    assert first.seeds_needed(1e-9) is None
    assert paired_difference([0.1]).seeds_needed() is None
    assert paired_difference([0.1, 0.1, 0.1]).seeds_needed() is None  # a spread of 0 is not known to be one


def test_power_after_a_correction_is_that_at_its_first_level():
    rng = np.random.default_rng(11)
    first = paired_difference([0.05, 0.01, 0.03, -0.01])
    needed = first.seeds_needed(0.02, tests=8)
    assert needed > first.seeds_needed(0.02)
    trials = rng.normal(0.02, first.sd, (4000, needed))
    assert (ttest_1samp(trials, 0, axis=1).pvalue < 0.05 / 8).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("alike", [0.1, 1 / 12, -3.0])
def test_units_that_differ_by_the_same_decide_nothing(alike):
    """Three networks that each gain one image of twelve: their spread is not known to be 0."""
    found = paired_difference([alike] * 3)
    assert (found.interval, found.p, found.beyond_chance) == (None, None, False)
    assert paired_difference([0.0] * 3).p == 1


def test_no_number_of_seeds_resolves_less_than_the_images_allow():
    rng = np.random.default_rng(10)
    favour = rng.choice([-1, 1], size=100)
    shared = np.stack([favour] * 3)
    found = paired_difference((shared.mean(axis=1) + 0.01).tolist(), shared)
    assert found.seeds_needed(0.05) is None  # the images alone leave an error of 0.1
    assert found.seeds_needed(0.5) is not None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_compare_takes_the_seeds_that_both_have_and_the_kind_that_is_asked_for():
    n = 400
    worse, better = np.arange(n) < 100, np.arange(n) < 200
    first = {seed: evaluation(worse, clean=better) for seed in (0, 1, 2)} | {7: evaluation(better)}
    second = {seed: evaluation(better) for seed in (2, 1, 0)} | {8: evaluation(worse)}
    robust = compare(first, second)
    assert robust.difference.mean == pytest.approx(0.25)
    # All seeds alike: what is left is that of the images, p(1 - p) / n; and the z of so many.
    half = 1.966 * np.sqrt(0.25 * 0.75 / n)
    assert robust.difference.interval == pytest.approx((0.25 - half, 0.25 + half), rel=0.01)
    assert robust.difference.beyond_chance
    assert sorted(robust.mcnemar) == [0, 1, 2]
    clean = compare(first, second, "clean").difference
    assert (clean.mean, clean.interval, clean.p, clean.beyond_chance) == (0, (0, 0), 1.0, False)


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
