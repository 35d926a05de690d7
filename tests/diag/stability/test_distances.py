"""Hamming distances against naive counts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_diag.stability import PackedMask, PackedMasks, hamming, trajectory


def random_masks(density: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (16, 3, 3, 3), "fc.weight": (10, 37), "one.weight": (1,)}
    return {name: rng.random(shape) < density for name, shape in shapes.items()}


PAIR = hnp.array_shapes(max_dims=4, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


@given(PAIR)
def test_distances_equal_the_naive_counts(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    found = hamming({"w": a}, {"w": torch.from_numpy(b)})
    flipped = sum(x != y for x, y in zip(a.flat, b.flat, strict=True))
    assert (found.flipped, found.entries) == (flipped, a.size)
    assert found.h == found.layers["w"] == flipped / a.size
    assert (found.kept, found.kept_other) == (a.sum(), b.sum())
    assert found.h_per_kept == (flipped / a.sum() if a.any() else None)
    either = (a | b).sum()
    assert found.iou == ((a & b).sum() / either if either else 1.0)
    assert found.h <= found.ceiling + 1e-12


@given(hnp.arrays(bool, hnp.array_shapes(max_dims=4, max_side=9)))
def test_packing_is_undone_by_unpacking_and_by_bytes(mask: np.ndarray) -> None:
    packed = PackedMasks.from_masks({"w": mask})
    assert packed.layers["w"].words.dtype == np.uint64
    np.testing.assert_array_equal(packed.unpack()["w"], mask)
    from_file = PackedMask.from_bytes(np.packbits(mask), mask.shape)
    np.testing.assert_array_equal(from_file.words, packed.layers["w"].words)


def test_layers_weigh_by_their_entries() -> None:
    a, b = random_masks(0.3, 0), random_masks(0.5, 1)
    found = hamming(a, b)
    assert found.layers == {name: (a[name] != b[name]).mean() for name in a}
    assert found.h == pytest.approx(np.concatenate([(a[n] != b[n]).ravel() for n in a]).mean())


def test_chance_is_what_random_masks_of_those_densities_show() -> None:
    shape, rng = (400, 500), np.random.default_rng(0)
    for d_a, d_b in ((0.01, 0.01), (0.1, 0.3), (0.8, 0.6)):
        a, b = rng.random(shape) < d_a, rng.random(shape) < d_b
        found = hamming({"w": a}, {"w": b})
        assert found.h_over_chance == pytest.approx(1, abs=0.05)
    exact = np.zeros(1000, bool)
    exact[:10] = True
    # Equal densities d: chance 2 d (1 - d), ceiling 2 d, reached by disjoint masks.
    found = hamming({"w": exact}, {"w": np.roll(exact, 500)})
    assert found.chance == pytest.approx(2 * 0.01 * 0.99)
    assert found.ceiling == pytest.approx(0.02)
    assert found.h_over_ceiling == 1
    assert found.h_per_kept == 2


def test_chance_and_ceiling_count_layer_by_layer() -> None:
    # A full and an empty layer can differ nowhere, though half of all entries are kept.
    full_and_empty = {"a": np.ones(100, bool), "b": np.zeros(100, bool)}
    found = hamming(full_and_empty, full_and_empty)
    assert (found.chance, found.ceiling) == (0, 0)
    assert (found.h_over_chance, found.h_over_ceiling) == (None, None)
    # Densities above 1/2: two masks of 0.8 cannot be disjoint.
    dense = np.arange(100) < 80
    assert hamming({"a": dense}, {"a": dense[::-1]}).ceiling == pytest.approx(0.4)
    assert hamming({"a": dense}, {"a": dense[::-1]}).h == pytest.approx(0.4)


def test_masks_of_a_model_are_compared_as_they_are() -> None:
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 7)), keep=0.3)
    before = masks(model)
    with torch.no_grad():
        scores(model)["2.scores"].normal_()
    found = hamming(before, masks(model))
    assert found.layers["0.weight"] == 0
    assert found.layers["2.weight"] > 0
    assert found.flipped == int((before["2.weight"] != masks(model)["2.weight"]).sum())


def test_trajectory_against_the_first_and_the_previous_mask() -> None:
    run = [random_masks(0.4, seed) for seed in range(4)]
    first = trajectory(run)
    steps = trajectory(run, against="previous")
    assert [x.h for x in first] == [hamming(run[0], m).h for m in run[1:]]
    assert [x.h for x in steps] == [hamming(a, b).h for a, b in itertools.pairwise(run)]
    assert trajectory(run[:1]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("fc.weight"), "only the first has fc.weight"),
        (lambda m: m.update({"extra.weight": np.ones(3, bool)}), "only the second has extra.weight"),
        (lambda m: m.update({"fc.weight": np.ones((37, 10), bool)}), r"fc.weight is \[10, 37\] in the first"),
        (lambda m: m.update({"fc.weight": np.full((10, 37), 0.5)}), "fc.weight: not a mask"),
        (lambda m: m.clear(), "no masks to compare"),
    ],
)
def test_masks_that_cannot_be_compared_are_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    other = random_masks(0.4, 1)
    change(other)
    with pytest.raises(InputError, match=message):
        hamming(random_masks(0.4, 0), other)


def test_packed_bytes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="2 bytes cannot be a packed mask of 20 entries"):
        PackedMask.from_bytes(np.zeros(2, np.uint8), (4, 5))
    with pytest.raises(InputError, match="bits behind its last entry"):
        PackedMask.from_bytes(np.full(3, 0xFF, np.uint8), (4, 5))
