"""Which masks a ball reaches, and the ascent among them, against enumeration of the ball's corners."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gap import losses_under, reachable
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import attach, scores
from s2ap_core.masks.topk import topk_mask
from s2ap_diag.curvature.ascent import Place
from s2ap_diag.curvature.exchange import Reach, exchange_ascent
from s2ap_diag.curvature.loss_difference import loss_difference, loss_differences

SCALES = {"score": torch.abs, "one": torch.ones_like}


def ball(seed: int, scale: str, rho: float, n: int = 9, n_keep: int = 4) -> tuple[Tensor, Tensor, Tensor, Reach]:
    """Scores [n] with a tie and a 0, their scale c, the mask, and what the ball around them reaches."""
    rng = np.random.default_rng(seed)
    s = torch.from_numpy(rng.normal(size=n))
    s[1], s[2] = -s[0], 0.0
    c = SCALES[scale](s)
    kept = topk_mask(s.abs(), n_keep).bool()
    return s, c, kept, Reach(s, c, kept, [n], rho)


def mask_at(s: Tensor, c: Tensor, u: Tensor, n_keep: int = 4) -> Tensor:
    return topk_mask(torch.addcmul(s, c, u).abs(), n_keep).bool()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rho", [0.1, 0.4, 1.5])
def test_only_entries_that_some_corner_flips_are_open(scale: str, rho: float) -> None:
    for seed in range(4):
        s, c, kept, reach = ball(seed, scale, rho)
        corners = itertools.product((-1.0, 1.0), repeat=9)
        inner = torch.minimum(torch.full_like(c, rho), s.abs() / c.clamp_min(1e-300))  # no further than 0
        signs = torch.where(s < 0, -1.0, 1.0)
        flipped = torch.zeros(9, dtype=torch.bool)
        for corner in corners:
            up = torch.tensor(corner) > 0
            flipped |= mask_at(s, c, signs * torch.where(up, rho, -inner)) ^ kept
        assert set(flipped.nonzero().flatten().tolist()) <= set(reach.index.tolist())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rho", [0.1, 0.4, 1.5])
def test_whatever_is_chosen_is_the_mask_at_a_point_of_the_ball(scale: str, rho: float) -> None:
    for seed in range(10):
        s, c, kept, reach = ball(seed, scale, rho)
        if not len(reach.index):
            assert rho == 0.1 or scale == "score"
            continue
        rng = np.random.default_rng(seed)
        choice = reach.choice(kept)
        for _ in range(30):
            drawn = reach.draw(rng)
            exchanged, count = reach.exchanged(
                choice, torch.from_numpy(rng.normal(size=9)), 2, np.zeros(len(choice), dtype=bool)
            )
            assert (exchanged != choice).sum() == 2 * count <= 4
            for chosen in (drawn, exchanged):
                u = reach.point(chosen)
                assert u.abs().max() <= rho
                expected = kept.clone()
                expected[reach.index] = torch.from_numpy(chosen)
                assert torch.equal(mask_at(s, c, u), expected)
            choice = exchanged if count else drawn


def linear(weights: Tensor, s: Tensor, c: Tensor, n_keep: int, seen: list[Tensor]) -> Callable[..., Place | None]:
    """f(u) = the sum of the weights kept at s + c u, with the straight-through gradient."""

    def place_above(u: Tensor, bound: float) -> Place | None:
        seen.append(u)
        value = float(weights[mask_at(s, c, u, n_keep)].sum())
        return Place(u, value, weights * s.sign() * c) if value > bound else None

    return place_above


@pytest.mark.parametrize("scale", SCALES)
def test_a_sum_over_the_kept_entries_is_maximised(scale: str) -> None:
    # What each exchange gains is then known exactly, and the best mask that any corner selects by trying all.
    for seed in range(6):
        s, c, kept, reach = ball(seed, scale, 0.4)
        weights = torch.from_numpy(np.random.default_rng(100 + seed).normal(size=9))
        f = linear(weights, s, c, 4, [])
        signs = torch.where(s < 0, -1.0, 1.0)
        inner = torch.minimum(torch.full_like(c, 0.4), s.abs() / c.clamp_min(1e-300))
        best = max(
            float(weights[mask_at(s, c, signs * torch.where(torch.tensor(up), 0.4, -inner))].sum())
            for up in itertools.product((False, True), repeat=9)
        )
        start = f(torch.zeros(9, dtype=torch.float64), -math.inf)
        found = exchange_ascent(f, reach, start, kept, 60, np.random.default_rng(0))
        assert found.value == pytest.approx(best)


def test_where_no_other_mask_is_in_reach_nothing_is_evaluated() -> None:
    s = torch.tensor([4.0, 3.0, 2.0, 1.0])
    kept, seen = s > 2.5, []
    f = linear(torch.ones(4), s, s, 2, seen)
    start = f(torch.zeros(4), -math.inf)
    assert exchange_ascent(f, Reach(s, s, kept, [4], 0.1), start, kept, 20, np.random.default_rng(0)) is start
    assert len(seen) == 1


def small(seed: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    model = attach(nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double(), keep=0.4)
    for s in scores(model).values():
        nn.init.normal_(s)
    return model, (torch.randn(20, 12).double(), torch.arange(20) % 3)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_the_enumeration_is_that_of_all_corners() -> None:
    torch.manual_seed(0)
    s = torch.randn(9).double()
    for rho in (0.05, 0.2, 0.5):
        at_corners = {
            tuple(topk_mask(s.abs() * (1 + rho * torch.tensor(corner)), 4).bool().tolist())
            for corner in itertools.product((-1.0, 1.0), repeat=9)
        }
        assert {tuple(mask.tolist()) for mask in reachable(s, 4, rho)} == at_corners


def test_on_average_four_fifths_of_the_maximum_over_all_masks_are_found() -> None:
    # Twenty-four balls; Auto-PGD, once from v = 0, finds half, and nothing finds more than all.
    shares: dict[str, list[float]] = {"exchange": [], "auto-pgd": []}
    for seed, rho in itertools.product(range(8), (0.05, 0.1, 0.15)):
        model, batch = small(seed)
        reached = {name: reachable(mask.scores, mask.n_keep, rho) for name, mask in score_masks(model).items()}
        with torch.no_grad():
            largest = float(losses_under(model, cross_entropy, batch, reached).max() - cross_entropy(model, batch))
        if largest > 0:
            for ascent, restarts in (("exchange", 2), ("auto-pgd", 1)):
                found = loss_difference(model, cross_entropy, [batch], rho=rho, ascent=ascent, restarts=restarts)
                shares[ascent].append(found.mean / largest)
                assert found.mean <= largest + 1e-9
    assert len(shares["exchange"]) > 20
    assert np.mean(shares["exchange"]) >= 0.8 > np.mean(shares["auto-pgd"])


@pytest.mark.parametrize("ascent", ["exchange", "auto-pgd"])
def test_a_wider_ball_never_gives_less(ascent: str) -> None:
    rhos = (0.3, 0.05, 0.1, 0.12, 0.14, 0.2, 0.25)  # in any order
    alone = 0
    for seed in range(4):
        model, batch = small(seed)
        batches = [batch, (batch[0] + 0.5, batch[1])]
        found = loss_differences(model, cross_entropy, batches, rhos, ascent=ascent, steps=4, restarts=1)
        assert [one.rho for one in found] == list(rhos)
        by_rho = np.array([one.per_batch for one in sorted(found, key=lambda one: one.rho)])
        assert (np.diff(by_rho, axis=0) >= 0).all()
        each = [
            loss_difference(model, cross_entropy, batches, rho=rho, ascent=ascent, steps=4, restarts=1).per_batch
            for rho in sorted(rhos)
        ]
        alone += int((np.diff(each, axis=0) < 0).sum())
        assert found[1].per_batch == each[0]
    assert alone > 0  # the radii one by one do give less


def test_the_average_case_does_not_depend_on_the_other_radii() -> None:
    model, batch = small(0)
    together = loss_differences(model, cross_entropy, [batch], (0.05, 0.2), draws=3)
    alone = loss_difference(model, cross_entropy, [batch], rho=0.2, draws=3)
    assert together[1].average_case == alone.average_case != 0
