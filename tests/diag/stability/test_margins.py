"""The margins' prediction of flips against every corner of the ball."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_diag.stability.margins import score_margins
from tests.tiny import linear_with_scores


@pytest.mark.parametrize("rho", [0.0, 0.01, 0.1, 0.25, 0.6, 1.5])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("scale", ["score", "one"])
def test_the_predicted_flips_are_the_most_that_any_v_makes(rho: float, keep: float, scale: str) -> None:
    # Every set of flips is best reached at a corner of the ball, or at 0 where rho lets |s| vanish.
    rng = np.random.default_rng(int(100 * rho + 10 * keep))
    for _ in range(3):
        s = rng.normal(size=8)
        model = linear_with_scores(s, keep)
        own, most = masks(model)["weight"], 0
        prediction = score_margins(model, rho, scale)
        room = rho * (np.abs(s) if scale == "score" else np.ones(8))
        for up in itertools.product((False, True), repeat=8):
            moved = np.where(up, np.abs(s) + room, np.maximum(np.abs(s) - room, 0))
            with torch.no_grad():
                scores(model)["scores"].copy_(torch.from_numpy(moved))
            most = max(most, int((masks(model)["weight"] != own).sum()))
        assert prediction.layers[""].flippable == most
        assert prediction.flippable == most / 8


def test_margins_of_a_layer_worked_out_by_hand() -> None:
    model = linear_with_scores(np.array([-1.0, 2.0, 3.0, -4.0]), keep=0.5)
    layer = score_margins(model, 0.2).layers[""]
    # Between 2 (dropped) and 3 (kept): 3 * 0.8 = 2.4 = 2 * 1.2 just does not change places.
    assert layer.threshold == 2.5
    assert layer.flippable == 0
    assert layer.within == 1  # |3 - 2.5| <= 0.6, |2 - 2.5| > 0.4
    assert score_margins(model, 0.21).layers[""].flippable == 2
    assert score_margins(model, 0.25).layers[""].within == 2
    # 4 and 1 follow once 4 (1 - rho) < 1 + rho.
    assert score_margins(model, 0.59).layers[""].flippable == 2
    assert score_margins(model, 0.61).layers[""].flippable == 4


def test_margins_of_several_layers_and_of_a_dense_one() -> None:
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), keep=0.5)
    found = score_margins(model, 0.1)
    counts = [layer.flippable for layer in found.layers.values()]
    assert found.flippable == pytest.approx(sum(counts) / 48)
    dense = score_margins(linear_with_scores(np.ones(4), keep=1.0), 0.5)
    assert dense.layers[""].threshold is None
    assert (dense.within, dense.flippable) == (0, 0)


@pytest.mark.parametrize("rho", [-1.0, float("nan"), float("inf")])
def test_a_rho_out_of_range_is_named(rho: float) -> None:
    with pytest.raises(InputError, match="rho = "):
        score_margins(linear_with_scores(np.arange(4.0), 0.5), rho)
