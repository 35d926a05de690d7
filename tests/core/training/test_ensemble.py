"""AutoAttack's members against the library's own: the same points, the same images that fall, fewer passes."""

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from s2ap_core.training.attacks import autoattack
from s2ap_core.training.ensemble.auto_pgd import AutoPGD, TargetedAutoPGD
from s2ap_core.training.ensemble.fab import TargetedFAB
from s2ap_core.training.ensemble.square import Square

MEMBERS = {
    "apgd-ce": (AutoPGD, APGDAttack, {"n_iter": 30}),
    "apgd-t": (TargetedAutoPGD, APGDAttack_targeted, {"n_iter": 30, "n_target_classes": 3}),
    "fab-t": (TargetedFAB, FABAttack_PT, {"n_iter": 12, "targeted": True, "n_target_classes": 3}),
    "square": (Square, SquareAttack, {"n_queries": 120, "resc_schedule": False}),
}
# Of the images below some fall to each member within it, and some stand; L1 is the library's but for FAB.
RADII = {
    ("apgd-ce", "Linf"): 0.02, ("apgd-ce", "L2"): 0.2, ("apgd-t", "Linf"): 0.02, ("apgd-t", "L2"): 0.2,
    ("fab-t", "Linf"): 0.02, ("fab-t", "L2"): 0.2, ("fab-t", "L1"): 1.0, ("square", "Linf"): 0.04,
}  # fmt: skip


class Spy(nn.Module):
    """Notes the images of each pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.model(x)


@pytest.fixture
def world() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network and 24 images in colour that it is right about: their labels are its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10)).requires_grad_(False)
    x = torch.rand(24, 3, 8, 8)
    return model, x, model(x).argmax(1)


def attack(kind: type, options: dict, model: nn.Module, x: Tensor, y: Tensor, at_once: int | None = None) -> Tensor:
    member = kind(model, seed=5, device="cpu", **options)
    if at_once is not None:
        member.at_once = at_once
    return member.perturb(x.clone(), y)


@pytest.mark.parametrize(("name", "norm"), RADII)
def test_the_same_images_fall_as_to_the_library_s(world, name, norm):
    model, x, y = world
    ours, library, options = MEMBERS[name]
    options = options | {"norm": norm, "eps": RADII[name, norm]}
    expected = attack(library, options, model, x, y)
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[norm]
    for at_once in (1, 1000):
        found = attack(ours, options, model, x, y, at_once)
        standing = model(found).argmax(1) == y
        assert standing.tolist() == (model(expected).argmax(1) == y).tolist()
        assert 0 < standing.sum() < len(x)
        assert (found - x).flatten(1).norm(dim=1, p=order).max() <= options["eps"] * (1 + 1e-5)
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal(found[standing], x[standing])


@pytest.mark.parametrize(("name", "norm"), [pair for pair in RADII if pair[0] != "square"])
def test_images_that_stand_are_led_through_the_library_s_points(world, name, norm):
    model, x, y = world
    ours, library, options = MEMBERS[name]
    options = options | {"norm": norm, "eps": RADII[name, norm] / 2}
    found = attack(library, options, model, x, y)
    (standing,) = (model(found).argmax(1) == y).nonzero(as_tuple=True)
    x, y = x[standing[:1]], y[standing[:1]]
    passes = []
    for kind in (ours, library):
        spy = Spy(model)
        attack(kind, options, spy, x, y)
        passes.append(spy.seen)
    # The library has a few more: it classifies the images again before each class, and FAB's best points after it.
    left = iter(passes[1])
    assert all(any(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for b in left) for a in passes[0])
    assert len(passes[1]) - len(passes[0]) <= {"apgd-ce": 0, "apgd-t": 3, "fab-t": 9}[name]


@pytest.mark.parametrize("at_once", [1, 24, 500])
def test_square_leaves_each_image_where_the_library_does(world, at_once):
    model, x, y = world
    options = MEMBERS["square"][2] | {"norm": "Linf", "eps": 0.03}
    ends, spies = [], []
    for kind in (Square, SquareAttack):
        spy = Spy(model)
        member = kind(spy, seed=5, device="cpu", **options)
        member.init_hyperparam(x)
        member.at_once = at_once
        torch.manual_seed(5)
        ends.append(member.attack_single_run(x, y)[1])
        spies.append(spy)
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    rows = [sum(map(len, spy.seen)) for spy in spies]
    if at_once == 1:
        assert rows[0] < rows[1]  # queries that change nothing
    if at_once == 500:
        assert len(spies[0].seen) < 0.5 * len(spies[1].seen)


def test_classes_share_passes_and_a_fallen_image_leaves_them_all(world):
    model, x, y = world
    spy = Spy(model)
    options = {"norm": "Linf", "eps": 0.02, "n_iter": 40}
    found = attack(TargetedAutoPGD, options, spy, x, y, at_once=9 * len(x))
    standing = int((model(found).argmax(1) == y).sum())
    rows = [len(points) for points in spy.seen]
    assert rows[0] == len(x)  # the labels
    assert rows[1] == 9 * len(x)
    assert len(rows) == 42
    assert rows[-1] == 9 * standing
    assert rows[1:] == sorted(rows[1:], reverse=True)


def test_a_pass_takes_no_more_rows_than_asked_for(world):
    model, x, y = world
    for name, at_once in (("apgd-t", 60), ("fab-t", 60), ("square", 60)):
        ours, _, options = MEMBERS[name]
        spy = Spy(model)
        attack(ours, options | {"norm": "Linf", "eps": 0.01}, spy, x, y, at_once)
        assert 24 < max(map(len, spy.seen)) <= 60


def test_the_whole_ensemble_attacks_with_them(world):
    model, x, y = world
    spy = Spy(model)
    robust = autoattack(spy, x, y, eps=0.02, attacks=("apgd-ce", "apgd-t"), seed=3, at_once=90)
    assert 0 < robust.sum() < 10
    assert max(map(len, spy.seen)) > 24
