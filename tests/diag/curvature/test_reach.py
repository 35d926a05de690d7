"""The reach of a perturbation against every mask of a small layer, each at its distance by a general solver."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, attach_masks, masks, scores
from s2ap_core.masks.parametrization import UnitMask
from s2ap_core.methods import build_method
from s2ap_core.methods.harp import rate_of
from s2ap_diag.curvature import reach
from s2ap_diag.curvature.reach import out_of_reach, perturbation_reach
from tests.tiny import linear_with_scores


def nearest(magnitude: np.ndarray, wanted: np.ndarray) -> float:
    """Distance to the nearest magnitudes of which exactly ``wanted`` is kept, by a general solver."""
    pairs = [(i, j) for i in np.flatnonzero(wanted) for j in np.flatnonzero(~wanted)]
    matrix = np.zeros((len(pairs), len(magnitude)))
    for row, (i, j) in enumerate(pairs):
        matrix[row, i], matrix[row, j] = 1, -1
    size = magnitude.max()
    magnitude = magnitude / size
    found = minimize(
        lambda m: np.square(m - magnitude).sum(), magnitude, jac=lambda m: 2 * (m - magnitude), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda m: matrix @ m, "jac": lambda m: matrix}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert found.success
    return float(size * np.sqrt(found.fun))


@pytest.mark.parametrize("keep", [0.34, 0.5, 0.67])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_reach_of_a_radius_is_the_most_of_all_masks_within_it(keep: float, heavy: bool) -> None:
    rng = np.random.default_rng(int(100 * keep))
    for _ in range(3):
        s = rng.normal(size=6) ** (3 if heavy else 1)
        model = linear_with_scores(s, keep)
        own = masks(model)["weight"].numpy()[0]
        distances = []
        for kept in itertools.combinations(range(6), int(own.sum())):
            wanted = np.isin(np.arange(6), kept)
            distances.append((nearest(np.abs(s), wanted), int((wanted ^ own).sum())))
        for gamma in (0.001, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
            radius = gamma * np.linalg.norm(s)
            most = max(flips for distance, flips in distances if distance <= radius)
            layer = perturbation_reach(model, gamma)[""]
            assert layer.flippable == most
            assert layer.needed == pytest.approx(
                min(distance for distance, flips in distances if flips) / np.linalg.norm(s), rel=1e-5
            )
        assert (out_of_reach(model, 0.99 * layer.needed), out_of_reach(model, 1.01 * layer.needed)) == ([""], [])


def tabulated(parts: list[tuple[np.ndarray, np.ndarray]], radius: float) -> int:
    """The most swaps of all parts together: every number in each, tau by a general solver, all sums tried."""
    least = {0: 0.0}
    for kept, dropped in parts:
        a, b = np.sort(kept), np.sort(dropped)[::-1]
        costs = [0.0]
        for m in range(1, min(len(a), len(b)) + 1):

            def cost(tau: float, a: np.ndarray = a[:m], b: np.ndarray = b[:m]) -> float:
                return float((np.maximum(a - tau, 0) ** 2 + np.maximum(tau - b, 0) ** 2).sum())

            costs.append(float(minimize_scalar(cost, bounds=(b[m - 1], a[m - 1]), options={"xatol": 1e-12}).fun))
        sums: dict[int, float] = {}
        for (n, spent), (m, more) in itertools.product(least.items(), enumerate(costs)):
            sums[n + m] = min(sums.get(n + m, np.inf), spent + more)
        least = sums
    return max(n for n, spent in least.items() if spent <= radius**2)


@pytest.mark.parametrize("steps", [False, True], ids=["smooth", "steps"])
@pytest.mark.parametrize("gamma", [0.01, 0.03, 0.1, 0.2, 0.4, 5.0])
def test_parts_share_a_ball_out_as_if_all_ways_were_tried(steps: bool, gamma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    made = torch.randn(6, 24, generator=rng)
    if steps:  # a dropped entry just below the weakest kept, all others far below: the second swap costs the most
        made = torch.where(made > 0.4, 1.0, 0.1) + 0.001 * torch.rand(6, 24, generator=rng)
        made[:, 0] = 0.99
    rates = nn.Parameter(torch.stack([rate_of(keep, 0.0) for keep in (0.2, 0.35, 0.6)]))
    model = attach_masks(
        nn.Linear(24, 6, bias=False), lambda *_: UnitMask(made.clone(), 0.5, (0, 0, 1, 1, 2, 2), rates, 0.0)
    )
    kept, magnitude = masks(model)["weight"].numpy(), made.abs().double().numpy()
    parts = [(row[k], row[~k]) for row, k in zip(magnitude, kept, strict=True)]
    expected = tabulated(parts, gamma * float(np.linalg.norm(magnitude)))
    assert perturbation_reach(model, gamma)[""].flippable == 2 * expected


def test_what_is_out_of_reach_needs_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10)), keep=0.2)
    needed = {name: layer.needed for name, layer in perturbation_reach(model, 0.1).items()}
    monkeypatch.delattr(reach, "_SwapCost")
    assert needed["0"] < needed["1"]
    assert out_of_reach(model, (needed["0"] + needed["1"]) / 2) == ["1"]


def test_no_perturbation_flips_more_than_is_in_reach() -> None:
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10)), keep=0.2)
    for gamma in (0.003, 0.01, 0.03, 0.1, 0.5):
        within = perturbation_reach(model, gamma)
        before = masks(model)
        for _ in range(20):
            ascent = [torch.randn_like(s) ** 3 for s in scores(model).values()]
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for s, a in zip(scores(moved).values(), ascent, strict=True):
                    s.add_(gamma * s.norm() * a / a.norm())
            for name, mask in masks(moved).items():
                assert int((mask ^ before[name]).sum()) <= within[name.removesuffix(".weight")].flippable
    assert within["0"].flippable == 2 * 240  # all that are kept
    dense = perturbation_reach(attach(nn.Linear(4, 2), keep=1.0), 0.5)[""]
    assert (dense.flippable, dense.needed) == (0, None)
    for gamma in (0.0, float("inf")):
        with pytest.raises(InputError, match="give a finite radius above 0"):
            perturbation_reach(model, gamma)


def test_a_channels_score_flips_all_of_its_entries(narrow) -> None:
    model = narrow("resnet18")
    method = build_method(MethodSettings(name="hydra-channels", flops_reduction=1.5))
    method.image_shape = (1, 8, 8)
    method.attach(model, torch.Generator())
    before, most = masks(model), perturbation_reach(model, 10.0)
    for name, layer in most.items():
        mask = before[f"{name}.weight"]
        kept = int(mask.sum())
        assert layer.entries == mask.numel()
        assert layer.flippable == 2 * min(kept, mask.numel() - kept)  # all that are kept, or all that are dropped
