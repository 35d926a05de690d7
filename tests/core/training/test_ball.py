"""The radius of a perturbation: how many entries it flips, held against the masks themselves, and what it follows."""

import copy
import math

import pytest
import torch
from torch import nn

from s2ap_core.config import MethodSettings, MinimizerSettings
from s2ap_core.masks.masking import attach, masks
from s2ap_core.methods import build_method
from s2ap_core.training import ball
from s2ap_core.training.ball import Flips, PerturbedLayer, Relative, Rise, radii_of_swaps, score_layers, search_radius

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def one_layer(entries: int, keep: float, seed: int, scale: str = "normal"):
    torch.manual_seed(seed)
    model = attach(nn.Sequential(nn.Linear(entries, 1, bias=False)), keep)
    (layer,) = score_layers(model)
    with torch.no_grad():
        layer.tensor.normal_()
        if scale == "heavy":
            layer.tensor.pow_(3)
    return model, layer


def swaps_at(model: nn.Module, layer, z: torch.Tensor) -> int:
    """Entries that leave the mask, counted on a copy by a full sort."""
    scores = layer.tensor.detach()
    (mask,) = masks(model).values()
    count = int(mask.sum())
    before, after = (set(v.abs().flatten().argsort()[-count:].tolist()) for v in (scores, scores + z))
    return len(before - after)


def radius_of_swaps(layer: PerturbedLayer, direction: torch.Tensor, swaps: int) -> torch.Tensor:
    wished = torch.tensor([float(swaps)], device=direction.device)
    return radii_of_swaps([layer], [layer.kept()], [direction], wished)[0]


@pytest.mark.parametrize("close", [ball.CLOSE, 0], ids=["looks", "never looks"])  # as off the CPU
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("direction", ["normal", "heavy", "sparse", "along s", "against s"])
@pytest.mark.parametrize("keep", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("scale", ["normal", "heavy"])
def test_a_layer_flips_the_share_that_is_asked_for(direction, keep, scale, device, close, monkeypatch):
    monkeypatch.setattr(ball, "CLOSE", close)
    within, readings = 0, 0
    for seed in range(3):
        model, layer = one_layer(20_000, keep, seed, scale)
        model.to(device)
        torch.manual_seed(100 + seed)
        d = torch.randn_like(layer.tensor)
        d = {
            "normal": d,
            "heavy": d**3,
            "sparse": d * (torch.rand_like(d) < 0.3),
            "along s": layer.tensor.detach() * d.abs(),
            "against s": -layer.tensor.detach() * d.abs(),
        }[direction]
        for share in (0.003, 0.01, 0.03, 0.1):
            wish = max(1, round(share * int(keep * 20_000)))
            radius = radius_of_swaps(layer, d, wish)
            found = swaps_at(model, layer, 1.0001 * radius * d / d.norm())
            if wish > 0.05 * keep * 20_000 and direction == "sparse":
                continue  # so many do not move
            if wish < 5:
                assert found >= wish
                continue
            readings += 1
            within += abs(found - wish) <= 0.2 * wish
            # It is about the smallest: half of it does not do.
            assert swaps_at(model, layer, 0.5 * radius * d / d.norm()) < wish
    assert within >= 0.95 * readings


def test_a_layer_of_few_entries_can_swap_one():
    model, layer = one_layer(8, 0.5, 0)
    d = torch.randn_like(layer.tensor)
    radius = radius_of_swaps(layer, d, 1)
    assert swaps_at(model, layer, 1.001 * radius * d / d.norm()) >= 1
    assert swaps_at(model, layer, 0.5 * radius * d / d.norm()) == 0


def test_a_broken_number_of_swaps_is_right_on_average():
    """0.3 of a swap in a layer of thirty kept entries, 2.4 in one of 240."""
    model = attach(nn.Sequential(nn.Linear(60, 1, bias=False), nn.Linear(480, 1, bias=False)), 0.5)
    layers = score_layers(model)
    torch.manual_seed(0)
    ascent = [torch.randn_like(layer.tensor) for layer in layers]
    found = []
    for seed in range(400):
        moved = [1.0001 * r * a / a.norm() for r, a in zip(Flips(0.01)(layers, ascent, seed), ascent, strict=True)]
        after = [(layer.tensor + z).abs() for layer, z in zip(layers, moved, strict=True)]
        found.append(
            [int((layer.mask.select(s).bool() & ~layer.kept()).sum()) for layer, s in zip(layers, after, strict=True)]
        )
    few, many = torch.tensor(found, dtype=torch.float).T
    assert set(few.tolist()) == {0, 1}
    assert set(many.tolist()) == {2, 3}
    assert few.mean() == pytest.approx(0.3, abs=0.08)
    assert many.mean() == pytest.approx(2.4, abs=0.08)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_where_nothing_can_flip_the_radius_is_0(keep):
    _, layer = one_layer(30, keep, 0)
    d = torch.randn_like(layer.tensor) if keep == 1.0 else torch.zeros_like(layer.tensor)
    assert radius_of_swaps(layer, d, 2) == 0
    d[0, 0] = math.nan
    assert radius_of_swaps(layer, d, 2) == 0


@pytest.mark.parametrize("method", ["hydra", "harp", "rlth", "hydra-channels", "harp-channels"])
def test_every_kind_of_scores_flips_as_asked(method, narrow):
    model = narrow("resnet18")
    budget = {"flops_reduction": 1.5} if "channels" in method else {"keep": 0.3}
    attached = build_method(MethodSettings(name=method, **budget))
    attached.image_shape = (1, 8, 8)
    attached.attach(model, torch.Generator().manual_seed(0))
    layers = score_layers(model)
    for layer in layers:
        if layer.mask.rate is not None:
            layer.mask.set_rate(torch.tensor(-0.5))
    torch.manual_seed(1)
    ascent = [torch.randn_like(layer.tensor) for layer in layers]
    radii = Flips(0.05)(layers, ascent, 0)
    before = masks(model)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for layer, radius, a in zip(score_layers(moved), radii, ascent, strict=True):
            layer.tensor.add_(1.0001 * radius * a / a.norm())
    counted = 0
    for (name, after), layer in zip(masks(moved).items(), layers, strict=True):
        scores_kept = int(layer.mask.select(layer.tensor.abs()).sum())
        if scores_kept == layer.tensor.numel():
            continue
        entries = after.numel() // layer.tensor.numel()  # of the mask for each score
        swapped = int((after & ~before[name]).sum()) / entries
        wish = 0.05 * scores_kept
        assert swapped >= math.floor(wish)
        assert swapped <= max(math.ceil(wish) + 2, 1.25 * wish)
        counted += 1
    assert counted > 3


def test_gamma_follows_the_rise_of_the_loss():
    """Against a loss that rises as gamma squared: gamma ends where the rise is the one asked for."""
    _, layer = one_layer(50, 0.5, 0)
    rise = Rise(0.2)
    for _ in range(200):
        (radius,) = rise([layer], [torch.ones_like(layer.tensor)], 0)
        gamma = float(radius / layer.tensor.norm())
        rise.learn(torch.tensor(3.0), torch.tensor(3.0 * (1 + 50 * gamma**2)))
    assert 50 * gamma**2 == pytest.approx(0.2, rel=1e-3)
    state = rise.state_dict()
    rise.learn(torch.tensor(0.01), torch.tensor(2.3))  # a loss near 0: no more than one step of 1
    assert rise.state_dict()["log_gamma"] == pytest.approx(float(state["log_gamma"]) - 1)
    rise.load_state_dict(state)
    rise.learn(torch.tensor(math.nan), torch.tensor(3.0))  # an iteration without the pass
    assert rise.state_dict() == state
    again = Rise(0.2)
    again.load_state_dict(state)
    assert again([layer], [layer.tensor], 0)[0] == rise([layer], [layer.tensor], 0)[0]


def test_settings_choose_the_radius():
    chosen = [search_radius(MinimizerSettings(gamma=gamma, flips=0.2, rise=0.3)) for gamma in (0.5, "flips", "rise")]
    assert chosen[:2] == [Relative(0.5), Flips(0.2)]
    assert isinstance(chosen[2], Rise)
    assert chosen[2].kappa == 0.3
