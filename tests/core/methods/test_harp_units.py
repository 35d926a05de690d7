"""HARP's rates for the units of a packed projection, against separate layers and a sort by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.layers import one_mask, score_masks
from s2ap_core.masks.masking import attach_masks, masks
from s2ap_core.masks.parametrization import ScoreMask, Unit, UnitMask
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.methods.harp import keep_floor, rate_of, scaled_counts
from s2ap_core.models import NETWORKS
from s2ap_core.models.vit import Attention
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.seeds import generator
from s2ap_core.training.ball import PerturbedLayer, radii_of_swaps
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.reach import perturbation_reach
from s2ap_diag.execution.execute import prepare
from s2ap_diag.stability.margins import score_margins
from s2ap_diag.verification import verify

UNITS = {"harp-units": (0, 0, 1), "harp-heads": (0, 1, 0, 1, 2, 3)}


def attention(method: str = "harp-units", keep: float = 0.3, width: int = 8) -> tuple[nn.Module, UnitMask]:
    """Attention of two heads under a method's masks, its rates all different, and the packed layer's mask."""
    torch.manual_seed(0)
    model = Attention(width, 2)
    build_method(MethodSettings(name=method, keep=keep)).attach(model, generator("cpu", 0))
    mask = score_masks(model)["qkv"]
    assert isinstance(mask, UnitMask)
    keeps = torch.linspace(0.2, 0.7, mask.rate.numel())
    mask.set_rate(torch.stack([rate_of(float(k), mask.keep_min) for k in keeps]))
    return model, mask


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the ``count`` largest, by a stable sort of all."""
    order = np.argsort(values, axis=None, kind="stable")
    return np.isin(np.arange(values.size), order[values.size - count :]).reshape(values.shape)


@pytest.mark.parametrize("method", UNITS)
def test_each_run_of_rows_keeps_its_largest_scores_at_its_units_rate(method):
    model, mask = attention(method)
    assert mask.unit_of_part == UNITS[method]
    size = 24 // len(UNITS[method])
    scores, found = mask.scores.detach().abs().numpy(), mask.mask().detach().numpy()
    rates = torch.sigmoid(mask.rate.detach().double()).numpy() * (1 - mask.keep_min) + mask.keep_min
    for part, unit in enumerate(UNITS[method]):
        rows = slice(part * size, (part + 1) * size)
        count = size * 8 - int((1 - rates[unit]) * size * 8)
        assert np.array_equal(found[rows], largest(scores[rows], count))
        assert np.array_equal(mask.select(mask.scores.abs())[rows], found[rows])
    assert int(found.sum()) == mask.n_keep
    assert int(masks(model)["qkv.weight"].sum()) == mask.n_keep


def test_a_packed_projection_is_as_three_layers_of_which_two_share_their_rate():
    model, mask = attention()
    rate = [nn.Parameter(r.detach().clone()) for r in mask.rate]
    separate = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    blocks = zip(separate, model.qkv.parametrizations.weight.original.chunk(3), model.qkv.bias.chunk(3), strict=True)
    for layer, weight, bias in blocks:
        layer.weight.data, layer.bias.data = weight.detach().clone(), bias.detach().clone()
    made = iter(zip(mask.scores.chunk(3), (rate[0], rate[0], rate[1]), strict=True))

    def make(_name: str, _layer: nn.Module) -> ScoreMask:
        scores, own = next(made)
        return ScoreMask(scores.detach().clone(), 0.3, own, mask.keep_min)

    attach_masks(separate, make)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in separate)
    theirs = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    with one_mask(model):
        ours = model(x)
        assert torch.allclose(ours, model.proj(theirs), atol=1e-6)
        gradient = torch.autograd.grad(ours.square().sum(), [mask.rate, mask.scores], retain_graph=True)
        of_rates = torch.autograd.grad(model.proj(theirs).square().sum(), rate, retain_graph=True)
        of_scores = torch.autograd.grad(
            model.proj(theirs).square().sum(), [m.scores for m in score_masks(separate).values()]
        )
    assert torch.allclose(gradient[0], torch.stack(of_rates), rtol=1e-4)
    assert torch.allclose(gradient[1], torch.cat(of_scores), rtol=1e-4, atol=1e-6)


def test_the_module_stays_as_it_is_and_other_layers_have_a_rate_each(narrow):
    plain, model = narrow("vit"), narrow("vit")
    build_method(MethodSettings(name="harp-units", keep=0.3)).attach(model, generator("cpu", 0))
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == [
        name for name, _ in plain.named_parameters() if name.endswith("bias")
    ]
    assert model.blocks[0].attn.forward.__func__ is Attention.forward
    shapes = {name: tuple(mask.rate.shape) for name, mask in score_masks(model).items()}
    assert {name for name, shape in shapes.items() if shape} == {f"blocks.{n}.attn.qkv" for n in range(8)}
    assert set(shapes.values()) == {(), (2,)}


class Apart(nn.Module):
    """Attention whose keys are of another width, so that its projections are layers, and one that packs them."""

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.attn = nn.MultiheadAttention(8, 2, kdim=6), nn.MultiheadAttention(8, 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("make", "name", "settings", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "harp-units", {}, "harp-units is harp here"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "harp-heads", {}, "harp-heads is harp here"),
        (lambda: nn.MultiheadAttention(8, 2), "harp-units", {"skip": ["in_proj"]}, "is harp here: .* = harp$"),
        (lambda: nn.MultiheadAttention(8, 2), "harp-units", {"keep_layers": {"in_proj": 0.5}}, "is harp here"),
        (lambda: nn.MultiheadAttention(8, 1), "harp-heads", {}, "is harp-units here: .* = harp-units, "),
        (Apart, "harp-units", {}, r"one rate, but apart\.q_proj is a layer of its own, .* = harp, or skip it"),
        (Apart, "harp-heads", {"skip": ["apart.q_proj"]}, r"one rate, but apart\.k_proj"),
    ],
)
def test_a_network_of_which_no_layer_has_units_is_refused(make, name, settings, said, device):
    with torch.device(device):
        model = make()
    method = build_method(MethodSettings(name=name, keep=0.3, **settings))
    for act in (method.check, lambda model: method.attach(model, generator("cpu", 0))):
        with pytest.raises(InputError, match=said) as refused:
            act(model)
        assert str(refused.value).startswith(f"method.name = {name} ")
    assert not score_masks(model)


def test_queries_and_keys_apart_may_be_left_out():
    model = Apart()
    method = build_method(MethodSettings(name="harp-heads", keep=0.3, skip=["apart.?_proj"]))
    method.attach(model, generator("cpu", 0))
    found = score_masks(model)
    assert list(found) == ["apart.out_proj", "attn.in_proj", "attn.out_proj"]
    assert isinstance(found["attn.in_proj"], UnitMask)


def test_a_run_says_so_before_it_trains(tmp_path, new_run, data):
    config = new_run(tmp_path / "run", network={"name": "resnet18", "width": 4}, method={"name": "harp-units"}).config
    with pytest.raises(InputError, match=r"^method\.name = harp-units is harp here"):
        prepare(config, data)


def test_a_list_of_rates_is_of_units(narrow):
    keeps = [0.2, *8 * [0.3, 0.4, 0.5, 0.6, 0.7]]
    model = narrow("vit")
    build_method(MethodSettings(name="harp-units", keep=0.3, rate_init=keeps)).attach(model, generator("cpu", 0))
    found = [unit.keep for mask in score_masks(model).values() for unit in mask.units]
    assert found == pytest.approx(keeps, abs=1e-6)
    with pytest.raises(InputError, match="rate_init lists 33 keep rates for 41 masked layers or units"):
        build_method(MethodSettings(name="harp-units", rate_init=33 * [0.3])).attach(narrow("vit"), generator("cpu", 0))


def test_the_penalty_counts_tied_rows_twice(narrow):
    model = narrow("vit")
    method = build_method(MethodSettings(name="harp-units", keep=0.3, penalty=1.0))
    method.attach(model, generator("cpu", 0))
    mask = score_masks(model)["blocks.3.attn.qkv"]
    mask.set_rate(torch.stack([rate_of(0.9, 0.03), rate_of(0.5, 0.03)]))
    sizes = {name: m.scores.numel() for name, m in score_masks(model).items()}
    total, row = sum(sizes.values()), 12 * 12
    kept = 0.3 * (total - 3 * row) + 2 * row * 0.9 + row * 0.5
    penalty = method.penalty(model, 0)
    assert penalty.item() == pytest.approx(kept / (0.3 * total) - 1, rel=1e-5)
    penalty.backward()
    slope = [k * (1 - k / 1) for k in ((0.9 - 0.03) / 0.97, (0.5 - 0.03) / 0.97)]
    expected = [n * row / (0.3 * total) * 0.97 * s for n, s in zip((2, 1), slope, strict=True)]
    assert mask.rate.grad.tolist() == pytest.approx(expected, rel=1e-4)


@given(
    units=st.lists(
        st.tuples(st.floats(0.02, 1), st.integers(20, 400), st.sampled_from([1, 2])), min_size=1, max_size=7
    ),
    target=st.sampled_from([0.05, 0.1, 0.2, 0.5]),
)
@hypothesis_settings(deadline=None, max_examples=80)
def test_the_budget_is_exact_with_tied_parts(units, target):
    # A layer of one part takes what is left over.
    given_units = [Unit(keep, size * parts, parts) for keep, size, parts in units] + [Unit(0.1, 200, 1)]
    counts = scaled_counts(given_units, target, keep_floor(target))
    total = sum(unit.entries for unit in given_units)
    assert sum(counts) == total - int((1 - target) * total)
    for unit, count in zip(given_units, counts, strict=True):
        assert count % unit.parts == 0
        assert int(keep_floor(target) * unit.entries) <= count <= unit.entries


@pytest.mark.parametrize("method", UNITS)
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.1, 0.01])
def test_what_is_handed_on_keeps_the_budget_and_ties_queries_to_keys(method, keep):
    model, mask = attention(method, keep, width=32)
    cut = build_method(MethodSettings(name=method, keep=keep))
    assert cut.cut_to_budget(model)
    assert not cut.cut_to_budget(model)
    bits = masks(model)
    total = sum(b.numel() for b in bits.values())
    assert sum(int(b.sum()) for b in bits.values()) == total - int((1 - keep) * total)
    queries, keys, values = bits["qkv.weight"].chunk(3)
    heads = len(mask.unit_of_part) // 3
    of_queries, of_keys, of_values = (
        [int(part.sum()) for part in rows.chunk(heads)] for rows in (queries, keys, values)
    )
    assert of_queries == of_keys
    assert of_queries != of_values or keep == 0.01


# --- on disk, resumed, copied ---

DESCRIBED = {"name": "vit", "classes": 10, "width": 12, "input_size": 8, "input_channels": 1, "norm_affine": True}


@pytest.fixture
def saved(narrow, tmp_path):
    """A ViT with rates for each unit, and its checkpoint."""
    model = narrow("vit")
    method = build_method(MethodSettings(name="harp-units", keep=0.2))
    method.attach(model, generator("cpu", 0))
    for index, mask in enumerate(score_masks(model).values()):
        rates = [rate_of(0.1 + 0.02 * index + 0.1 * unit, mask.keep_min) for unit in range(mask.rate.numel())]
        mask.set_rate(torch.stack(rates).view(mask.rate.shape))
    method.cut_to_budget(model)
    save_checkpoint(tmp_path / "mask", model, {"network": DESCRIBED, "keep": 0.2, "method": "harp-units"})
    return model, tmp_path / "mask"


def test_rates_of_units_survive_checkpoint_and_copy(saved):
    model, path = saved
    expected = masks(model)
    for again in (load_checkpoint(path).model, copy.deepcopy(model)):
        assert all(torch.equal(bits, expected[name]) for name, bits in masks(again).items())
        pairs = zip(score_masks(again).values(), score_masks(model).values(), strict=True)
        assert all(torch.equal(ours.rate, theirs.rate) and ours.units == theirs.units for ours, theirs in pairs)
    assert [finding for finding in verify(load_checkpoint(path)) if finding.kind == "violation"] == []


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("unit", torch.tensor([0, 2, 0]), "does not share the layer's 36 rows out"),
        ("unit", torch.tensor([0, 0, 1, 1, 2]), "does not share the layer's 36 rows out"),
        ("unit", torch.zeros(0, dtype=torch.int64), r"unit is torch.int64 of shape \[0\]: .*; restore the file"),
        ("unit", torch.tensor(0), r"unit is torch.int64 of shape \[\]"),
        ("unit", torch.tensor([[0, 0, 1]]), r"unit is torch.int64 of shape \[1, 3\]"),
        ("unit", torch.tensor([0.0, 0.0, 1.0]), r"unit is torch.float32 of shape \[3\]"),
        ("unit", torch.tensor([False, False, True]), r"unit is torch.bool of shape \[3\]"),
        ("unit", torch.tensor([0, 0, 1], dtype=torch.int32), r"unit is torch.int32 of shape \[3\]"),
        ("unit", torch.tensor([0, 1, 2]), r"rate has shape \[2\], not \[3\]"),
        ("rate", torch.tensor(0.5), r"rate has shape \[\], not \[2\]"),
        ("rate", torch.tensor([0.5, torch.nan]), "is NaN or infinite"),
    ],
)
def test_units_that_the_layer_does_not_have_are_refused(name, tensor, said, saved):
    _, path = saved
    tensors, header = load_tensors(path)
    save_tensors(path, tensors | {f"blocks.0.attn.qkv.{name}": tensor}, header)
    with pytest.raises(InputError, match=said):
        load_checkpoint(path)


class OneBlock(nn.Module):
    """A network of one attention over the rows of 8x8 images."""

    def __init__(self, classes: int, input_size: int, input_channels: int, norm_affine: bool) -> None:
        super().__init__()
        self.attn = Attention(input_size * input_channels, 2)
        self.norm = nn.LayerNorm(8, elementwise_affine=norm_affine)
        self.linear = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.transpose(1, 2).flatten(2)
        return self.linear(self.norm(rows + self.attn(rows)).mean(1))


def test_a_search_with_s2ap_goes_on_after_an_interruption_to_the_last_bit(tmp_path, new_run, data, monkeypatch):
    monkeypatch.setitem(NETWORKS, "one-block", OneBlock)
    sections = {
        "network": {"name": "one-block"},
        "method": {"name": "harp-units", "keep": 0.2, "penalty": 1.0},
        "minimizer": {"name": "s2ap", "gamma": 0.1, "warmup": 1},
        "prune": {"epochs": 3, "lr": 0.5},
    }
    whole, halved = (new_run(tmp_path / name, **sections) for name in ("whole", "halved"))
    Stages(whole, data).all()
    Stages(halved, data).pretrain()
    Stages(halved, data).prune(1)
    Stages(halved, data).all()
    for name in ("prune-best", "finetune-best"):
        ours, theirs = (load_tensors(run.checkpoint(name))[0] for run in (halved, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    searched = load_checkpoint(whole.result("prune"))
    assert [f for f in verify(searched) if f.kind == "violation"] == []
    assert [f for f in verify(load_checkpoint(whole.result("finetune")), searched) if f.kind == "violation"] == []
    first = rate_of(0.2, keep_floor(0.2)).float()
    state, _ = load_tensors(whole.state("prune"))
    assert not torch.isclose(state["model.attn.qkv.rate"], first).any()


# --- what a perturbation does to a layer of several thresholds ---


def split_linear(scores: torch.Tensor, keeps: list[float]) -> nn.Module:
    rates = nn.Parameter(torch.stack([rate_of(k, 0.0) for k in keeps]))
    return attach_masks(
        nn.Linear(scores.shape[1], len(scores), bias=False),
        lambda n, m: UnitMask(scores.clone(), 0.5, (0, 0, 1), rates, 0.0),
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.3])
def test_the_reach_of_a_ball_is_shared_out_among_the_parts(seed, gamma):
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) + 0.2
    model = split_linear(scores, [0.41, 0.61])
    found = perturbation_reach(model, gamma)[""]
    kept = masks(model)["weight"].numpy()

    def cost(part: int, m: int) -> float:
        """The cheapest m swaps in one row, by trying thresholds on a fine grid."""
        row = scores[part].double().numpy()
        a, b = np.sort(row[kept[part]])[:m], np.sort(row[~kept[part]])[::-1][:m]
        taus = np.linspace(0, 1.3, 40_001)[:, None]
        return float((np.maximum(a - taus, 0) ** 2 + np.maximum(taus - b, 0) ** 2).sum(1).min()) if m else 0.0

    most = [min(kept[part].sum(), (~kept[part]).sum()) for part in range(3)]
    reach = (gamma * float(scores.norm())) ** 2
    swaps = [s for s in itertools.product(*(range(n + 1) for n in most)) if sum(map(cost, range(3), s)) <= reach]
    assert found.flippable == 2 * max(map(sum, swaps))
    assert found.needed == pytest.approx(
        min(cost(part, 1) for part in range(3)) ** 0.5 / float(scores.norm()), rel=1e-3
    )


@pytest.mark.parametrize("rho", [0.01, 0.1, 0.5])
def test_margins_of_a_split_layer_are_those_of_its_parts(rho):
    scores = torch.randn(12, 9, generator=torch.Generator().manual_seed(5))
    whole = score_margins(split_linear(scores, [0.3, 0.6]), rho).layers[""]
    parts = []
    for rows, keep in zip(scores.chunk(3), (0.3, 0.3, 0.6), strict=True):
        made = attach_masks(nn.Linear(9, 4, bias=False), lambda n, m, r=rows, k=keep: ScoreMask(r.clone(), k))
        parts.append(score_margins(made, rho).layers[""])
    assert whole.entries == 108
    assert whole.flippable == sum(part.flippable for part in parts) > 0
    assert whole.within == sum(part.within for part in parts)
    assert whole.threshold is None


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_radius_of_swaps_is_about_the_smallest_in_a_split_layer(share):
    rng = torch.Generator().manual_seed(6)
    # Thresholds far apart: the values' rows are a hundred times the others'.
    scores = torch.randn(30, 40, generator=rng) * torch.tensor([1.0, 1.0, 100.0]).repeat_interleave(10)[:, None]
    model = split_linear(scores, [0.3, 0.6])
    (mask,) = score_masks(model).values()
    ascent = torch.randn(30, 40, generator=rng)
    wished = round(share * mask.n_keep)
    layer = PerturbedLayer(mask.scores, mask.scores.norm, mask)
    (radius,) = radii_of_swaps([layer], [layer.kept()], [ascent], torch.tensor([float(wished)]))

    def swapped(radius: float) -> int:
        moved = (mask.scores + radius * ascent / ascent.norm()).detach().abs()
        return int((mask.select(moved).bool() & ~mask.select(mask.scores.abs()).bool()).sum())

    assert wished <= swapped(float(radius)) <= 1.5 * wished + 1


def test_the_classification_head_has_a_rate_where_it_is_asked_for(new_run, data, tmp_path):
    counted = {}
    for dense in (True, False):
        network = {"name": "vit", "width": 16, "options": {"dense_head": dense}}
        run = new_run(tmp_path / str(dense), network=network, method={"name": "harp-units", "keep": 0.3})
        Stages(run, data).all("prune")
        model = load_checkpoint(run.checkpoint("prune-best")).model
        counted[dense] = {name: int(mask.sum()) for name, mask in masks(model).items()}
        sizes = {name: mask.numel() for name, mask in masks(model).items()}
        assert sum(counted[dense].values()) == round(0.3 * sum(sizes.values()))
    assert "head.weight" not in counted[True]
    assert 0 < counted[False]["head.weight"] < sizes["head.weight"] == 160
