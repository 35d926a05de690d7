"""Each kind of layer against what its own forward and backward passes show: channels, counts, costs, curvature."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.masks.channel_graph import ChannelGraph
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import masked_layers, raw_weight, to_channels_last
from s2ap_core.masks.masking import attach, bake, dead_channels, fix_masks, masks, scores
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.runs.checkpoints import fill
from s2ap_diag.curvature.dead import dead_scores
from s2ap_diag.curvature.hessian import ScoreHessian

SEQUENCE, PLANE, VOLUME = (4, 7), (4, 4, 5), (4, 3, 2, 3)
CONVOLUTIONS = {
    "Conv1d": (nn.Conv1d(4, 6, 3, padding=1, stride=2), SEQUENCE),
    "Conv2d-groups": (nn.Conv2d(4, 6, 3, groups=2), PLANE),
    "Conv3d": (nn.Conv3d(4, 6, (2, 1, 2), padding=(0, 0, 1)), VOLUME),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), SEQUENCE),
    "ConvTranspose2d-groups": (nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=2), PLANE),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 6, 2, stride=(2, 1, 1)), VOLUME),
}


class Small(nn.Module):
    """One layer between two linear ones, the first of few scores, on [B, 6] inputs, three classes."""

    lift: Tensor

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(6, 4)
        self.register_buffer("lift", torch.randn(4, torch.Size(shape).numel()))
        self.layer = layer
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layer((self.first(x) @ self.lift).tanh().view(-1, *self.shape)).tanh()
        return self.last(maps.flatten(2).mean(2))


@pytest.fixture(params=CONVOLUTIONS)
def small(request: pytest.FixtureRequest) -> Small:
    layer, shape = CONVOLUTIONS[request.param]
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    layer.reset_parameters()
    return Small(layer, shape).double().eval()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 3


def by_hand(scores: Tensor, keep: float) -> Tensor:
    """Keep all but the ``int((1 - keep) n)`` smallest."""
    order = scores.abs().flatten().argsort(stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[order[: int((1 - keep) * len(order))]] = False
    return mask.view(scores.shape)


def test_it_computes_with_the_product_and_is_the_same_from_files(small: Small) -> None:
    x, _ = inputs()
    plain, model = copy.deepcopy(small), attach(small, 0.4)
    assert list(masks(model)) == ["first.weight", "layer.weight", "last.weight"]
    for name, bits in masks(model).items():
        weight = plain.get_parameter(name)
        assert torch.equal(bits, by_hand(weight.detach(), 0.4))
        weight.data.mul_(bits)
    expected = plain(x)
    assert torch.equal(model(x), expected)
    assert torch.equal(bake(model)(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    again = Small(copy.deepcopy(plain.layer), small.shape).double()
    fill(again, plain_state_dict(model), 0.4)
    assert torch.equal(again(x), expected)
    assert torch.equal(fix_masks(model)(x), expected)


def test_a_dead_channel_is_one_that_no_input_moves(small: Small) -> None:
    layer, full = Layer("layer", small.layer, "weight"), small.layer.weight.detach().clone()
    nn.init.zeros_(small.layer.bias)
    maps = torch.randn(4, *small.shape, dtype=torch.float64, requires_grad=True)
    found = []
    for seed in range(6):
        bits = torch.rand(full.shape, generator=torch.Generator().manual_seed(seed)) < 1.5 / layer.fan_in
        small.layer.weight.data = full * bits
        outputs = small.layer(maps)
        dead = (outputs.transpose(0, 1).flatten(1) == 0).all(1)
        assert torch.equal(dead_channels(layer, bits), dead)
        (gradient,) = torch.autograd.grad(outputs.square().sum(), maps)
        unread = (gradient.transpose(0, 1).flatten(1) == 0).all(1)
        assert torch.equal(~layer.by_input(bits).flatten(1).any(1), unread)
        found.append((bool(dead.any()), bool(unread.any())))
    assert all(any(kind) for kind in zip(*found, strict=True))


def test_entries_are_of_the_output_channel_that_they_move(small: Small) -> None:
    layer = Layer("layer", small.layer, "weight")
    spread = layer.spread(torch.arange(6), layer.weight)
    maps = torch.randn(4, *small.shape, dtype=torch.float64)
    for channel in range(6):
        (gradient,) = torch.autograd.grad(small.layer(maps)[:, channel].sum(), layer.weight)
        assert torch.equal(gradient != 0, spread == channel)


def test_dead_scores_are_those_without_a_weight_in_their_channel(small: Small) -> None:
    model = attach(small, 0.5)
    layer = masked_layers(model)["layer"]
    with torch.no_grad():
        scores(model)["layer.scores"].mul_(1 - layer.spread(torch.arange(6) % 3 == 1, layer.weight).double())
    found = dead_scores(model, ["layer"])
    assert found.channels == 2
    assert int(found.where.sum()) == 2 * layer.fan_in
    assert (scores(model)["layer.scores"].flatten()[found.where] == 0).all()


def test_products_are_those_of_the_dense_hessian(small: Small) -> None:
    batch = inputs()
    model = attach(small, 0.4)
    hessian = ScoreHessian(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])
    got = torch.stack([hessian.matvec(e) for e in torch.eye(hessian.n, dtype=torch.float64)])
    torch.testing.assert_close(got, dense_hessian(model, batch))


def dense_hessian(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """diag(w sign(s)) H diag(w sign(s)), H in the masked weights of the plain network."""
    plain, layers = bake(model), masked_layers(model).values()
    names = [layer.tensor("weight") for layer in layers]
    products = [plain.get_parameter(name).detach() for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in products])
        held = {name: part.view(p.shape) for name, part, p in zip(names, parts, products, strict=True)}
        return F.cross_entropy(functional_call(plain, held, (batch[0],)), batch[1])

    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in products]))
    raw = [raw_weight(layer).detach().flatten() for layer in layers]
    factor = torch.cat(raw) * torch.cat([s.detach().flatten().sign() for s in scores(model).values()])
    return factor[:, None] * hessian * factor


def test_flops_are_those_that_torch_counts(small: Small) -> None:
    graph = ChannelGraph(nn.Sequential(small.layer, nn.Flatten(1, -1)), small.shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.layer(torch.zeros(1, *small.shape, dtype=torch.float64))
    assert graph.dense_flops == counter.get_total_flops() // 2


def test_maps_are_laid_out_channels_last_where_they_are_planes(small: Small) -> None:
    x, _ = inputs()
    model = attach(small, 0.4)
    before = model(x)
    torch.testing.assert_close(to_channels_last(model)(x), before)
    own = [t for t in model.state_dict().values() if t.dim() == 4]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in own)
