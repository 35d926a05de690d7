"""Masks against naive selections and hand-written gradients; what must survive copying and saving."""

import copy
import io
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import s2ap_core.masks.topk
from s2ap_core.errors import InputError
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import constant_mask, masked_layers, one_mask
from s2ap_core.masks.masking import attach, attach_masks, bake, density, fix_masks, masks, scaled_scores, scores
from s2ap_core.masks.parametrization import FixedMask, ScoreMask
from s2ap_core.masks.state import load_plain_state_dict, plain_state_dict
from s2ap_core.masks.topk import SAMPLE, topk_mask, topk_mask_on_device
from s2ap_core.methods.harp import rate_of

NAN = float("nan")


def naive_mask(magnitude: Tensor, n_keep: int) -> list[float]:
    """Row-major: everything is sorted, stably and ascending, and the first ones are dropped."""
    values = magnitude.reshape(-1).tolist()
    ranked = sorted(range(len(values)), key=values.__getitem__)
    kept = set(ranked[len(values) - n_keep :])
    return [float(i in kept) for i in range(len(values))]


@st.composite
def magnitudes(draw: st.DrawFn) -> Tensor:
    """Non-negative scores with ties, of any shape, contiguous, transposed or channels_last."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    values = draw(st.lists(few | st.floats(0, 1, width=32), min_size=1, max_size=8))
    n = torch.Size(shape).numel()
    tensor = torch.tensor([values[(7 * i) % len(values)] for i in range(n)]).reshape(shape)
    match draw(st.sampled_from(["contiguous", "transposed", "channels_last"])):
        case "transposed":
            tensor = tensor.transpose(0, -1)
        case "channels_last" if len(shape) == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
    return tensor


@given(magnitude=magnitudes(), keep=st.floats(0, 1, exclude_min=True))
@example(magnitude=torch.ones(10), keep=0.9)
@settings(deadline=None, max_examples=200)
def test_masks_keep_the_exact_count_and_are_a_stable_sorts(magnitude, keep):
    n = magnitude.numel()
    n_keep = n - int((1 - keep) * n)
    found = ScoreMask(magnitude, keep).mask()
    assert int(found.sum()) == n_keep
    assert found.reshape(-1).tolist() == naive_mask(magnitude, n_keep)
    assert topk_mask_on_device(magnitude, n_keep).reshape(-1).tolist() == naive_mask(magnitude, n_keep)
    on_device = topk_mask_on_device(magnitude, torch.tensor(n_keep))  # a learned rate's count may be any
    assert on_device.reshape(-1).tolist() == naive_mask(magnitude, n_keep)


LARGE = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "wide": lambda rng, n: np.exp(10 * rng.standard_normal(n)),
    "few values": lambda rng, n: rng.integers(0, 5, n),
    "one value": lambda rng, n: np.ones(n),
    "mostly 0": lambda rng, n: np.where(rng.random(n) < 0.999, 0.0, rng.random(n)),
    "infinite": lambda rng, n: np.where(rng.random(n) < 0.3, np.inf, rng.random(n)),
    # Not one of these has a place in a sample, so that the threshold lies beyond all that the sample shows.
    "hidden from the sample": lambda rng, n: np.where(np.isin(np.arange(n), _sampled(n)), 0.0, 1.0 + rng.random(n)),
}


def _sampled(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=SAMPLE)


@pytest.mark.parametrize("name", LARGE)
def test_a_mask_of_many_entries_is_a_stable_sort_s(name):
    n = 20 * SAMPLE
    values = LARGE[name](np.random.default_rng(1), n).astype(np.float32)
    order = np.argsort(values, kind="stable")
    for n_keep in (1, 2, 100, n // 100, n // 10, n // 2, n - n // 10, n - 100, n - 1):
        expected = np.zeros(n, dtype=bool)
        expected[order[n - n_keep :]] = True
        found = topk_mask(torch.from_numpy(values).view(20, -1), n_keep)
        np.testing.assert_array_equal(found.numpy().astype(bool).ravel(), expected)
    with pytest.raises(InputError, match="NaN"):
        topk_mask(torch.from_numpy(np.where(np.arange(n) == n // 3, np.nan, values)), n // 10)


@pytest.mark.parametrize("n_keep", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("place", [0, 5])
def test_no_mask_of_nan(n_keep, place):
    values = torch.arange(6.0).reshape(2, 3)
    values.view(-1)[place] = NAN
    with pytest.raises(InputError, match="NaN"):
        topk_mask(values, n_keep)


def test_nan_does_not_go_unnoticed_on_a_device():
    # Without a synchronisation nothing can be raised there, but the loss can be made NaN.
    assert topk_mask_on_device(torch.tensor([1.0, NAN, 3.0, 2.0]), 2).isnan().any()


def one_layer(rate: float | None = None, keep_min: float = 0.05) -> tuple[nn.Module, ScoreMask]:
    """y = sum_j w_j m_j x_j with fixed weights and scores, two of four (fixed k) kept."""
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -3.0, 5.0, 7.0]]))
    parameter = None if rate is None else nn.Parameter(torch.tensor(rate))
    mask = ScoreMask(torch.tensor([[0.1, -0.9, 0.8, -0.2]]), 0.5, parameter, keep_min)
    attach_masks(layer, lambda name, layer: mask)
    return layer, mask


def test_gradients_are_the_ones_worked_out_by_hand():
    # L = sum_j c_j w_j m_j, so that dL/dm = c w for every entry, kept or not. Straight through |s| it
    # becomes c w sign(s), and through k its sum times dk/dr.
    c, r, keep_min = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 0.3, 0.05
    layer, mask = one_layer(r, keep_min)
    layer(c).sum().backward()
    assert mask.scores.grad.tolist() == [[2.0, 6.0, 15.0, -28.0]]
    sigma = 1 / (1 + torch.tensor(-r, dtype=torch.float64).exp())
    dk_dr = (1 - keep_min) * sigma * (1 - sigma)
    assert mask.rate.grad.item() == pytest.approx((2 - 6 + 15 + 28) * dk_dr.item(), rel=1e-6)
    # The weights' gradient sees the mask: k = 0.05 + 0.95 * 0.574 keeps 4 - int(0.404 * 4) = 3 of them.
    assert layer.parametrizations.weight.original.grad.tolist() == [[0.0, 2.0, 3.0, 4.0]]


def test_scores_of_zero_get_no_gradient_and_fixed_k_no_rate():
    layer, mask = one_layer()
    with torch.no_grad():
        mask.scores[0, 0] = 0
    layer(torch.ones(1, 4)).sum().backward()
    assert mask.scores.grad.tolist() == [[0.0, 3.0, 5.0, -7.0]]
    assert "rate" not in dict(mask.named_parameters())


def test_initial_scores():
    linear, conv, up = nn.Linear(2, 2), nn.Conv2d(5, 3, 2), nn.ConvTranspose2d(6, 4, 3, groups=2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -4.0], [0.5, 2.0]]))
    for module, fan_in in ((linear, 2), (conv, 5 * 2 * 2), (up, 3 * 3 * 3)):
        expected = (6 / fan_in) ** 0.5 * module.weight / module.weight.abs().max()
        assert torch.allclose(scaled_scores(Layer("", module, "weight")), expected)
    nn.init.zeros_(linear.weight)
    assert scaled_scores(Layer("", linear, "weight")).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_masked_forward_is_the_network_with_products(narrow, batch):
    plain, masked = narrow().eval(), attach(narrow(), 0.3).eval()
    with torch.no_grad():
        for layer in (plain.conv1, plain.conv2, plain.linear):
            n = layer.weight.numel()
            mask = naive_mask(scaled_scores(Layer("", layer, "weight")).abs(), n - int(0.7 * n))
            layer.weight.mul_(torch.tensor(mask).reshape(layer.weight.shape))
        assert torch.equal(masked(batch[0]), plain(batch[0]))
        assert torch.equal(bake(masked)(batch[0]), plain(batch[0]))


def test_first_and_last_layer_are_masked_and_declared_dense_ones_are_not(narrow):
    assert list(masks(attach(narrow(), 0.5))) == ["conv1.weight", "conv2.weight", "linear.weight"]
    network = narrow()
    network.dense_layers = ("linear",)
    assert list(masks(attach(network, 0.5))) == ["conv1.weight", "conv2.weight"]


@pytest.mark.parametrize("kind", ["scores", "rate", "fixed"])
def test_a_masked_model_survives_deepcopy_and_pickling(narrow, batch, kind):
    model = attach(narrow(), 0.3)
    if kind == "rate":
        model = attach_masks(
            narrow(), lambda n, m: ScoreMask(scaled_scores(m), 0.3, nn.Parameter(rate_of(0.3, 0.03)), 0.03)
        )
    elif kind == "fixed":
        model = fix_masks(model)
    model.eval()
    expected = model(batch[0]).detach()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), copy.deepcopy(copy.deepcopy(model))):
        assert list(twin.state_dict()) == list(model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), model.state_dict().values()))  # noqa: B905
        assert torch.equal(twin(batch[0]), expected)
        assert masked_layers(twin).keys() == masked_layers(model).keys()
        assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())
        # Taking the masks off a copy leaves the others with theirs.
        plain = bake(twin)
        assert not masked_layers(plain)
        assert plain.state_dict().keys() == narrow().state_dict().keys()
        plain.conv1.weight.data.zero_()
        assert torch.equal(twin(batch[0]), expected)
        twin.load_state_dict(model.state_dict())
    assert torch.equal(model(batch[0]), expected)
    model(batch[0]).sum().backward()
    trained = scores(model).values() if kind != "fixed" else [model.conv1.parametrizations.weight.original]
    assert all(tensor.grad is not None for tensor in trained)


def test_attaching_twice_is_refused_and_changes_nothing(narrow):
    model = attach(narrow(), 0.3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="conv1 is masked already"):
        attach(model, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    # A network of which one layer is masked stays as it is too.
    half = attach_masks(narrow(), lambda n, m: ScoreMask(scaled_scores(m), 0.3), only={"linear"})
    with pytest.raises(InputError, match="linear is masked already"):
        attach(half, 0.3)
    assert masked_layers(half).keys() == {"linear"}


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, NAN])
def test_keep_rates_out_of_range_are_refused(narrow, keep):
    with pytest.raises(InputError, match="keep = "):
        attach(narrow(), keep)


def test_nothing_to_mask_is_refused():
    with pytest.raises(InputError, match="no layer that can be masked"):
        attach(nn.Sequential(nn.ReLU()), 0.5)


def test_masking_is_idempotent(narrow, batch):
    model = attach(narrow(), 0.3).eval()
    held, expected = masks(model), model(batch[0])
    again = attach_masks(bake(model), lambda name, layer: FixedMask(held[f"{name}.weight"]))
    assert torch.equal(again(batch[0]), expected)
    assert all(torch.equal(masks(fix_masks(again))[name], held[name]) for name in held)
    assert density(again) == density(model) == sum(map(torch.sum, held.values())) / sum(map(torch.numel, held.values()))


class Selections:
    """Counts the selections that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0

        def counted(magnitude: Tensor, n_keep: int) -> Tensor:
            self.count += 1
            return topk_mask(magnitude, n_keep)

        monkeypatch.setattr(s2ap_core.masks.topk, "topk_mask", counted)


def test_one_mask_selects_once_and_gives_the_same_gradient(narrow, batch, monkeypatch):
    x, y = batch
    model, reference = attach(narrow(), 0.3).eval(), attach(narrow(), 0.3).eval()

    def loss(network: nn.Module) -> Tensor:
        return F.cross_entropy(network(x), y) + F.cross_entropy(network(1 - x), y)

    loss(reference).backward()
    made = Selections(monkeypatch)
    with one_mask(model):
        loss(model).backward()
    assert made.count == 3
    for ours, theirs in zip(scores(model).values(), scores(reference).values(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    # Afterwards each pass selects again: a changed score counts.
    before = model(x)
    with torch.no_grad():
        model.conv1.parametrizations.weight[0].scores.mul_(torch.rand_like(model.conv1.weight))
    assert not torch.equal(model(x), before)


def test_constant_mask_selects_once_and_differentiates_inputs_alone(narrow, batch, monkeypatch):
    model = attach(narrow(), 0.3).eval()
    x = batch[0].clone().requires_grad_()
    expected = torch.autograd.grad(bake(model)(x).square().sum(), x)[0]
    made = Selections(monkeypatch)
    with constant_mask(model):
        for _ in range(3):
            (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
        assert not model.conv1.weight.requires_grad
    assert made.count == 3  # one for each layer
    assert torch.equal(gradient, expected)
    model(x).sum().backward()
    assert model.conv1.parametrizations.weight[0].scores.grad is not None


def test_an_exception_in_a_block_does_not_leave_an_old_mask_behind(narrow, batch):
    model = attach(narrow(), 0.3).eval()
    for block in (one_mask, constant_mask):
        with suppress(KeyError), block(model):
            model(batch[0])
            raise KeyError
        before = model(batch[0])
        with torch.no_grad():
            model.linear.parametrizations.weight[0].scores.copy_(torch.rand_like(model.linear.weight))
        assert not torch.equal(model(batch[0]), before)


def test_fixed_masks_train_the_kept_weights_alone(narrow, batch):
    searched = attach(narrow(), 0.3)
    for parameter in searched.parameters():
        parameter.requires_grad_(False)
    held, expected = masks(searched), searched.eval()(batch[0])
    model = fix_masks(searched)
    assert torch.equal(model(batch[0]), expected)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for name, layer in (("conv1", model.conv1), ("conv2", model.conv2), ("linear", model.linear)):
        weight, mask = layer.parametrizations.weight.original, held[f"{name}.weight"]
        assert not weight[~mask].any()
        assert not weight.grad[~mask].any()
        assert weight.grad[mask].any()


def test_names_on_disk_are_plain(narrow):
    names = set(plain_state_dict(attach(narrow(), 0.3)))
    assert {"conv1.weight", "conv1.scores", "linear.weight", "linear.scores", "linear.bias"} <= names
    assert set(narrow().state_dict()) <= names
    assert not any("parametrizations" in name for name in names)
    assert "linear.mask" in plain_state_dict(fix_masks(attach(narrow(), 0.3)))
    assert set(plain_state_dict(attach(nn.Linear(3, 2), 0.5))) == {"weight", "scores", "bias"}


def test_loading_plain_names(narrow, batch):
    trained, other = attach(narrow(), 0.3).eval(), attach(narrow(), 0.3).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.rand_like(parameter))
    state = plain_state_dict(trained)
    load_plain_state_dict(other, state)
    assert torch.equal(other(batch[0]), trained(batch[0]))
    for broken, message in (
        ({k: v for k, v in state.items() if k != "conv2.scores"}, "lacks conv2.scores$"),
        ({**state, "conv3.weight": torch.ones(1), "conv4.weight": torch.ones(1)}, "unknown conv3.weight and 1 more"),
        ({**state, "linear.bias": torch.ones(3)}, "another shape for linear.bias"),
    ):
        with pytest.raises(InputError, match=message):
            load_plain_state_dict(other, broken)
