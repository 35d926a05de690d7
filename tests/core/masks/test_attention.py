"""torch's attention, packed and not, against the same module with products for weights, in each of its code paths."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.config import MethodSettings
from s2ap_core.foreign.formats import read_state
from s2ap_core.foreign.network import foreign_masks
from s2ap_core.masks.channel_graph import ChannelGraph
from s2ap_core.masks.layers import constant_mask, masked_layers, one_mask
from s2ap_core.masks.masking import attach, bake, fix_masks, masks, scores
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.methods import build_method
from s2ap_core.runs.checkpoints import fill
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.perturbation import Perturbation
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.reading.masks import read_arrays
from s2ap_diag.stability import PackedMasks, hamming
from tests.core.masks.test_kinds import by_hand, dense_hessian

WIDTH = 4


class Attends(nn.Module):
    """Attention over the three rows of [B, 3, 4] inputs, two classes; with other widths it has three projections."""

    def __init__(self, packed: bool = True, weights: bool = False) -> None:
        super().__init__()
        sizes = {} if packed else {"kdim": 5, "vdim": 3}
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **sizes)
        self.packed, self.weights = packed, weights
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        key, value = (x, x) if self.packed else (F.pad(x, (0, 1), value=0.5), x[..., :3])
        return self.head(self.attn(x, key, value, need_weights=self.weights)[0].mean(1))


PACKED = ["attn.in_proj_weight", "attn.out_proj.weight", "head.weight"]
APART = ["attn.q_proj_weight", "attn.k_proj_weight", "attn.v_proj_weight", "attn.out_proj.weight", "head.weight"]


def made(packed: bool, weights: bool = False) -> Attends:
    torch.manual_seed(0)
    model = Attends(packed, weights).double().eval()
    nn.init.normal_(model.attn.in_proj_bias)
    return model


def images() -> Tensor:
    return torch.randn(6, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[True, False], ids=["packed", "apart"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("weights", [True, False])
def test_every_path_computes_with_the_products(packed: bool, weights: bool) -> None:
    plain, model = made(packed, weights), attach(made(packed, weights), 0.4)
    found = masks(model)
    assert list(found) == (PACKED if packed else APART)
    assert list(scores(model)) == [name.removesuffix("weight") + "scores" for name in found]
    for name, bits in found.items():
        weight = plain.get_parameter(name)
        assert torch.equal(bits, by_hand(weight.detach(), 0.4))
        weight.data.mul_(bits)
    x = images()
    slow = plain(x)
    with torch.no_grad():
        fast = plain(x)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    for network in (model, copy.deepcopy(model), bake(model)):
        assert torch.equal(network(x), slow)
        with torch.no_grad():
            close(network(x), fast)
            with one_mask(network):
                close(network(x), fast)
        with constant_mask(network), torch.no_grad():
            close(network(x), fast)
    again = made(packed, weights)
    fill(again, plain_state_dict(model), 0.4)
    assert torch.equal(again(x), slow)
    assert torch.equal(fix_masks(model)(x), slow)
    assert plain_state_dict(bake(model)).keys() == made(packed).state_dict().keys()


def test_the_fused_transformer_layer_sees_the_masks() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 6, dropout=0.0, batch_first=True).double().eval()
    dense, model = copy.deepcopy(layer), attach(layer, 0.3)
    assert list(masked_layers(model)) == ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
    x, expected = images(), bake(model)(images())
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        assert not torch.allclose(dense(x), expected, atol=1e-3)
        scores(model)["self_attn.in_proj_scores"].neg_().add_(1)  # another mask
        torch.testing.assert_close(model(x), bake(model)(x))
        assert not torch.allclose(model(x), expected, atol=1e-3)


@pytest.mark.parametrize("weights", [True, False])
def test_products_are_those_of_the_dense_hessian(packed: bool, weights: bool) -> None:
    model, batch = attach(made(packed, weights), 0.5), (images(), torch.arange(6) % 2)
    hessian = ScoreHessian(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])
    got = torch.stack([hessian.matvec(e) for e in torch.eye(hessian.n, dtype=torch.float64)])
    torch.testing.assert_close(got, dense_hessian(model, batch))
    first = ScoreHessian(model, hessian.loss, [batch], layers=["attn.in_proj" if packed else "attn.q_proj"])
    block = torch.stack([first.matvec(e) for e in torch.eye(first.n, dtype=torch.float64)])
    torch.testing.assert_close(block, got[: first.n, : first.n])


def test_a_perturbation_moves_each_projection_by_its_radius(packed: bool) -> None:
    model = attach(made(packed), 0.5)
    x, y = images(), torch.arange(6) % 2
    before = {name: s.detach().clone() for name, s in scores(model).items()}
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.3))
    optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.1)
    with perturbation.applied(lambda: F.cross_entropy(model(x), y), optimizer, 0):
        moved = {name: (s.detach() - before[name]).norm() for name, s in scores(model).items()}
    for name, length in moved.items():
        torch.testing.assert_close(length, 0.3 * before[name].norm())
    assert all(torch.equal(s, before[name]) for name, s in scores(model).items())


def test_flops_are_those_of_the_products_that_torch_counts(packed: bool) -> None:
    model = made(packed)
    with FlopCounterMode(display=False) as counter:
        model(images()[:1])
    counts = counter.get_flop_counts()["Global"].items()
    # Products with the weights of layers; those of queries with keys are others.
    products = sum(count for op, count in counts if str(op) in ("aten.addmm", "aten.mm"))
    assert ChannelGraph(attach(model, 0.5), (3, WIDTH)).dense_flops == products // 2
    encoder = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 6, batch_first=True))
    assert ChannelGraph(encoder, (3, WIDTH)).dense_flops == 3 * (4 * WIDTH**2 + 2 * 6 * WIDTH)


def test_mask_files_and_other_tools_know_the_projections(tmp_path: Path) -> None:
    model = attach(made(True), 0.5)
    bits = {name: m.numpy() for name, m in masks(model).items()}
    for suffix in ("weight", "mask", "weight_mask"):
        named = {name.removesuffix("weight") + suffix: m for name, m in bits.items()}
        np.savez(tmp_path / f"{suffix}.npz", **named)
        there = read_arrays(tmp_path / f"{suffix}.npz").masks
        assert list(there.layers) == list(bits)
        assert hamming(there, PackedMasks.from_masks(bits)).h == 0
    pruned = made(True)
    prune.custom_from_mask(pruned.attn, "in_proj_weight", masks(model)["attn.in_proj_weight"])
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    source = read_state(tmp_path / "pruned.pt")
    assert source.format == "torch-prune"
    found, _ = foreign_masks(source)
    assert list(found) == ["attn.in_proj_weight"]
    assert np.array_equal(found["attn.in_proj_weight"].numpy(), bits["attn.in_proj_weight"])


@pytest.mark.parametrize(("method", "unit"), [("harp-units", [0, 0, 1]), ("harp-heads", [0, 1, 0, 1, 2, 3])])
def test_a_packed_projection_has_the_rates_of_units(method: str, unit: list[int]) -> None:
    model = made(True)
    build_method(MethodSettings(name=method, keep=0.5)).attach(model, torch.Generator())
    rates = {name: p for name, p in model.named_parameters() if name.endswith("in_proj_weight.0.rate")}
    for rate in rates.values():
        rate.data = torch.linspace(-1, 1, len(rate), dtype=rate.dtype)
    state = plain_state_dict(model)
    assert state["attn.in_proj_unit"].tolist() == unit
    kept = masks(model)["attn.in_proj_weight"].view(len(unit), -1).sum(1).tolist()
    assert all(kept[a] == kept[b] for a in range(len(unit)) for b in range(len(unit)) if unit[a] == unit[b])
    assert len(set(kept)) == len(set(unit))
    again = made(True)
    fill(again, state, 0.5)
    assert torch.equal(masks(again)["attn.in_proj_weight"], masks(model)["attn.in_proj_weight"])
