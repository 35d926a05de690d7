"""How scores start and how much each layer keeps, against the reading notes' formulas."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from s2ap_core.config import parse_config
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import attach_masks, masks, scores
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.methods import METHODS, Method, MethodSettings, build_method
from s2ap_core.methods.harp import Harp, rate_of
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.seeds import generator


def attached(name: str, model: nn.Module, keep: float = 0.1, **options: object) -> Method:
    method = build_method(MethodSettings(name=name, keep=keep, **options))
    method.attach(model, generator("cpu", 0, "scores"))
    return method


def set_keeps(method: Method, model: nn.Module, keeps: list[float]) -> None:
    with torch.no_grad():
        for mask, keep in zip(score_masks(model).values(), keeps, strict=True):
            mask.rate.copy_(rate_of(keep, method.keep_min))


def sigmoid(r: float) -> float:
    return 1 / (1 + math.exp(-r))


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match=r"unknown method 'grasp': choose one of hydra, harp, rlth"):
        build_method(MethodSettings(name="grasp"))
    assert set(METHODS) >= {"hydra", "harp", "rlth"}


def test_hydra_keeps_the_same_fraction_of_every_layer_and_the_largest_weights(narrow):
    model = narrow()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    attached("hydra", model, keep=0.15)
    for name, mask in masks(model).items():
        n = mask.numel()
        assert int(mask.sum()) == n - int((1 - 0.15) * n)
        # The first mask ranks |w|: no dropped weight is larger than a kept one.
        assert weights[name][mask].abs().min() >= weights[name][~mask].abs().max()
        fan_in = weights[name][0].numel()
        expected = math.sqrt(6 / fan_in) * weights[name] / weights[name].abs().max()
        assert torch.allclose(scores(model)[name.replace("weight", "scores")], expected)


# --- HARP ---


@pytest.mark.parametrize(
    ("keep", "rate_init", "expected"),
    [
        (0.01, "uniform", [0.1, 0.1, 0.1]),
        (0.3, "uniform", [0.3, 0.3, 0.3]),
        (0.01, "target", [0.01, 0.01, 0.01]),
        (0.1, [0.2, 0.5, 0.99], [0.2, 0.5, 0.99]),
        (0.1, [0.2, 0.5, 1.0], [0.2, 0.5, 0.99]),
        (1.0, "target", [0.99, 0.99, 0.99]),
    ],
)
def test_harps_rates_start_where_the_strategy_says(narrow, keep, rate_init, expected):
    model = narrow()
    attached("harp", model, keep=keep, rate_init=rate_init)
    for mask, wanted in zip(score_masks(model).values(), expected, strict=True):
        k_min = 0.1 * keep
        assert k_min + (1 - k_min) * sigmoid(mask.rate.item()) == pytest.approx(wanted, abs=1e-6)
        assert mask.rate.shape == ()


def test_a_list_of_rates_must_fit_the_layers(narrow):
    with pytest.raises(InputError, match="rate_init lists 2 keep rates for 3 masked layers"):
        attached("harp", narrow(), rate_init=[0.1, 0.2])


@pytest.mark.parametrize("rates", [[math.nan], [2.0], [-0.1]])
def test_rates_out_of_range_are_refused(rates):
    with pytest.raises(InputError, match=r"method\.rate_init"):
        parse_config({"method": {"name": "harp", "rate_init": rates}}, "file")


def test_harps_penalty_and_its_gradient_are_the_formula(narrow):
    model, target, c = narrow(), 0.2, 0.05
    method = attached("harp", model, keep=target, penalty=c)
    layers = list(score_masks(model).values())
    k_min = 0.1 * target
    for mask, r in zip(layers, (-1.0, 0.5, -0.3), strict=True):
        mask.rate.data.fill_(r)
    sizes = [mask.scores.numel() for mask in layers]
    kept = sum(n * (k_min + (1 - k_min) * sigmoid(m.rate.item())) for n, m in zip(sizes, layers, strict=True))
    excess = kept / sum(sizes) / target - 1
    assert excess > 0
    penalty = method.penalty(model, epoch=6)
    assert penalty.item() == pytest.approx(c * 7 * excess, rel=1e-6)
    penalty.backward()
    for mask, size in zip(layers, sizes, strict=True):
        s = sigmoid(mask.rate.item())
        expected = c * 7 * size / sum(sizes) / target * (1 - k_min) * s * (1 - s)
        assert mask.rate.grad.item() == pytest.approx(expected, rel=1e-5)
        assert mask.scores.grad is None
    set_keeps(method, model, [0.1, 0.1, 0.1])
    assert method.penalty(model, epoch=6).item() == 0


def test_a_rate_that_starts_at_one_moves(narrow):
    model, target, c = narrow(), 0.2, 0.05
    method = attached("harp", model, keep=target, penalty=c, rate_init=[1.0, 1.0, 1.0])
    layers = list(score_masks(model).values())
    method.penalty(model, epoch=0).backward()
    n, k_min = sum(mask.scores.numel() for mask in layers), 0.1 * target
    sigma = (0.99 - k_min) / (1 - k_min)
    for mask in layers:
        slope = c * mask.scores.numel() / n / target
        assert mask.rate.grad.item() == pytest.approx(slope * (1 - k_min) * sigma * (1 - sigma), rel=1e-4)
    # A hundred steps of the search's SGD on the penalty alone.
    optimizer = torch.optim.SGD([mask.rate for mask in layers], lr=0.1, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        method.penalty(model, epoch=19).backward()
        optimizer.step()
    assert max(mask.keep for mask in layers[1:]) < 0.9


def test_harps_factor_stays_where_the_target_was_first_reached(narrow):
    model = narrow()
    method = attached("harp", model, keep=0.1, penalty=0.01)
    dense, sparse = [0.4] * 3, [0.08] * 3
    factors = []
    for epoch, keeps in enumerate([dense, dense, sparse, dense, sparse, dense]):
        set_keeps(method, model, dense)
        factors.append(method.penalty(model, epoch).item() / (0.01 * 3))  # kept / target - 1 = 3
        set_keeps(method, model, keeps)
        method.end_epoch(model, epoch)
    assert factors == pytest.approx([1, 2, 3, 3, 3, 3], rel=1e-5)
    resumed = Harp(method.settings)
    resumed.load_state_dict(method.state_dict())
    set_keeps(method, model, dense)
    assert resumed.penalty(model, 9).item() == pytest.approx(0.01 * 3 * 3, rel=1e-5)


@pytest.mark.parametrize(("excess", "reached"), [(-0.3, True), (0.00004, True), (0.0002, False), (1.0, False)])
def test_the_target_is_reached_at_an_excess_of_zero_to_four_decimals(narrow, excess, reached):
    model = narrow().double()
    method = attached("harp", model, keep=0.1)
    set_keeps(method, model, [0.1 * (1 + excess)] * 3)
    method.end_epoch(model, 5)
    assert (method.reached == 5) is reached
    assert (method.warnings() == []) is reached


def bare_layers(sizes: list[int]) -> nn.Module:
    """One linear layer of each size, with scores that are no multiple of each other."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size, 1, bias=False) for size in sizes))


def enforced(sizes: list[int], keeps: list[float], target: float) -> tuple[list[int], list[int], int]:
    """What each layer keeps before and after ``cut_to_budget``, and the budget."""
    model = bare_layers(sizes)
    method = attached("harp", model, keep=target)
    set_keeps(method, model, [max(keep, method.keep_min) for keep in keeps])
    before = [int(mask.sum()) for mask in masks(model).values()]
    method.cut_to_budget(model)
    budget = sum(sizes) - int((1 - target) * sum(sizes))
    return before, [int(mask.sum()) for mask in masks(model).values()], budget


def common_factor(keeps: list[float], sizes: list[int], budget: int, keep_min: float) -> float:
    """By bisection, what all keep rates are scaled by so that they add up to the budget."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        kept = sum(n * min(max(middle * k, keep_min), 1) for n, k in zip(sizes, keeps, strict=True))
        low, high = (middle, high) if kept < budget else (low, middle)
    return high


# Rates that lie within a factor of five stay above k_min, a tenth of the target.
@given(
    layers=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.2, 1)), min_size=1, max_size=6),
    target=st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0]),
)
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_budget_is_met_exactly_by_one_common_factor(layers, target):
    sizes, keeps = [200 + n for n, _ in layers], [keep for _, keep in layers]
    before, after, budget = enforced(sizes, keeps, target)
    assert sum(after) == budget
    if sum(before) != budget:
        factor = common_factor(keeps, sizes, budget, 0.1 * target)
        for count, size, keep in zip(after, sizes, keeps, strict=True):
            assert abs(count - size * min(factor * keep, 1)) <= 1 + 1e-4 * size


@given(
    layers=st.lists(st.tuples(st.integers(50, 4000), st.floats(0.002, 1)), min_size=2, max_size=6),
    target=st.sampled_from([0.05, 0.1]),
)
@example(layers=[(1000, 1.0), (1000, 0.0625)], target=0.01)
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_budget_is_met_with_layers_at_k_min(layers, target):
    sizes, keeps = [size for size, _ in layers], [keep for _, keep in layers]
    _, after, budget = enforced(sizes, keeps, target)
    assert sum(after) == budget
    assert all(count >= int(0.1 * target * size) for count, size in zip(after, sizes, strict=True))


def test_an_exact_budget_is_left_alone():
    model = bare_layers([1000, 3000])
    method = attached("harp", model, keep=0.1)
    set_keeps(method, model, [(250 - 0.5) / 1000, (150 - 0.5) / 3000])
    before = [mask.rate.item() for mask in score_masks(model).values()]
    assert not method.cut_to_budget(model)
    assert [mask.rate.item() for mask in score_masks(model).values()] == before
    assert [int(mask.sum()) for mask in masks(model).values()] == [250, 150]


def test_an_enforced_mask_survives_its_checkpoint(narrow, tiny_network, tmp_path):
    model = narrow()
    method = attached("harp", model, keep=0.2)
    set_keeps(method, model, [0.9, 0.35, 0.1])
    method.cut_to_budget(model)
    described = {"name": "tiny", "classes": 10, "width": 4, "input_size": 8, "input_channels": 1, "norm_affine": True}
    save_checkpoint(tmp_path / "mask", model, {"network": described, "keep": 0.2})
    again = load_checkpoint(tmp_path / "mask").model
    expected, found = masks(model), masks(again)
    n = sum(mask.numel() for mask in expected.values())
    assert sum(int(mask.sum()) for mask in found.values()) == n - int(0.8 * n)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [m.keep for m in score_masks(again).values()] == [m.keep for m in score_masks(model).values()]


# --- RLTH ---


def test_rlth_prunes_signed_constants_by_kaiming_uniform_scores(narrow):
    method = build_method(MethodSettings(name="rlth", keep=0.3))
    model = narrow(norm_affine=False, width=12)
    method.initialise(model, generator("cpu", 3, "initialise"))
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("weight")}
    method.attach(model, generator("cpu", 3, "scores"))
    assert weights
    for name, weight in weights.items():
        fan_in = weight[0].numel()
        assert torch.allclose(weight.abs(), torch.tensor(math.sqrt(2 / fan_in)))
        assert abs(weight.sign().mean()) < 4 / math.sqrt(weight.numel())
        found = scores(model)[name.replace("weight", "scores")]
        assert found.abs().max() <= 1 / math.sqrt(fan_in)  # sqrt(6 / ((1 + 5) fan_in))
        assert found.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.15)
        # Scores have nothing to do with the weights they are for.
        assert abs((found.sign() * weight.sign()).mean()) < 4 / math.sqrt(weight.numel())
    assert (method.pretrained, method.finetuned) == (False, False)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn_28_4"])
@pytest.mark.parametrize("init", ["signed-constant", "kaiming"])
def test_rlth_has_no_frozen_random_bias(narrow, name, init):
    model = narrow(name, norm_affine=False)
    names = list(model.state_dict())
    assert any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    build_method(MethodSettings(name="rlth", init=init)).initialise(model, generator("cpu", 0))
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    assert list(model.state_dict()) == names


def test_rlths_draws_are_a_function_of_the_generator(narrow):
    method = build_method(MethodSettings(name="rlth", keep=0.3, init="kaiming"))

    def drawn(seed: int) -> torch.Tensor:
        model = narrow(width=12)
        method.initialise(model, generator("cpu", seed))
        return model.linear.weight.detach()

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert drawn(0).std().item() == pytest.approx(math.sqrt(2 / drawn(0).shape[1]), rel=0.1)


def test_only_harp_has_a_rate(narrow):
    for name, has_rate in (("hydra", False), ("harp", True), ("rlth", False)):
        model = narrow()
        method = attached(name, model)
        assert all((mask.rate is not None) is has_rate for mask in score_masks(model).values())
        if not has_rate:
            assert method.penalty(model, 5).item() == 0
            assert not method.cut_to_budget(model)


def test_scores_may_be_shared_by_the_weights_they_broadcast_to():
    layer = nn.Linear(6, 4, bias=False)
    attach_masks(layer, lambda name, layer: ScoreMask(torch.arange(6.0)[None], 0.5))
    assert masks(layer)["weight"].tolist() == [[False] * 3 + [True] * 3] * 4
