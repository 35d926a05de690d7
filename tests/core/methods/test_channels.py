"""Channel pruning: scores, counts, FLOPs, the budget, and searches that end within it."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.data import load
from s2ap_core.errors import InputError
from s2ap_core.export import kept_channels, shrink
from s2ap_core.files.tensors import load_tensors
from s2ap_core.foreign.network import masks_without_weights
from s2ap_core.masks.channel_graph import ChannelGraph
from s2ap_core.masks.masking import attach, attach_masks, masks, scores
from s2ap_core.masks.parametrization import ChannelMask
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.methods.channels import channel_masks, channel_scores
from s2ap_core.models import build
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.loop import Callback
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.stages import Stages
from tests.reading import masks_in

IMAGE = (1, 8, 8)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHORTCUTS = {f"layer{n}.0.shortcut.0": f"layer{n}.0.conv1" for n in (2, 3, 4)}


class Chain(nn.Module):
    """On [B, 1, 4, 4] images: 3x3 maps of 4 channels at 4x4, of 3 channels at 2x2, then 12 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 3)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()).flatten(1))


class Residual(nn.Module):
    """A stream of four channels on [B, 1, 1, 1] images, which a block and the head read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.block = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.block(x).relu()).flatten(1))


def kept(channels: int, *which: int) -> torch.Tensor:
    return torch.zeros(channels).index_fill(0, torch.tensor(which), 1.0)


def attached(model: nn.Module, name: str, shape=IMAGE, **settings):
    method = build_method(MethodSettings(name=name, **settings))
    method.image_shape = shape
    method.attach(model, torch.Generator())
    return method


def shuffled_scores(model: nn.Module) -> None:
    """Scores that have nothing to do with the weights, so that consumers choose differently."""
    rng = torch.Generator().manual_seed(3)
    for tensor in scores(model).values():
        tensor.data.normal_(generator=rng)


def measured_flops(model: nn.Module, shape=IMAGE) -> int:
    """Multiply-accumulates as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def test_scores_start_at_the_sums_over_each_input_channel():
    weight = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.5, -1.0]])
    expected = 6**0.5 * torch.tensor([[1.0, 2.5 / 4, 1 / 4]])
    torch.testing.assert_close(channel_scores(weight), expected)
    split_over_kernel = torch.stack([weight, -weight], dim=2)[..., None] / 2
    torch.testing.assert_close(channel_scores(split_over_kernel), expected[..., None, None])
    assert channel_scores(torch.zeros(2, 3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("keep", "channels", "n"), [(0.3, 4, 1), (0.4, 4, 2), (0.01, 8, 1), (0.99, 8, 8), (0.6, 9, 5)])
def test_a_mask_keeps_a_rounded_number_of_channels_whole(keep, channels, n):
    layer = nn.Conv2d(channels, 3, 2, bias=False)
    attach_masks(layer, lambda name, layer: ChannelMask(channel_scores(layer.weight), keep, 0))
    mask = masks(layer)["weight"]
    assert mask.shape == (3, channels, 2, 2)
    best = layer.parametrizations.weight.original.abs().sum((0, 2, 3)).argsort(descending=True)[:n]
    assert set(mask.any(0).flatten(1).any(1).nonzero().flatten().tolist()) == set(best.tolist())
    assert int(mask.sum()) == n * 3 * 4


def test_the_gradient_of_a_channels_score_is_the_sum_over_its_weights():
    layer = nn.Linear(3, 2, bias=False)
    attach_masks(layer, lambda name, layer: ChannelMask(channel_scores(layer.weight), 0.4, 0))
    weight, upstream = layer.parametrizations.weight.original, torch.tensor([[1.0, 2.0, 3.0], [-1.0, 4.0, 0.5]])
    (layer.weight * upstream).sum().backward()
    torch.testing.assert_close(scores(layer)["scores"].grad, (weight * upstream).sum(0, keepdim=True))


def test_flops_of_a_chain_by_hand():
    graph = ChannelGraph(Chain(), (1, 4, 4))
    assert graph.dense_flops == 16 * 9 * 1 * 4 + 4 * 9 * 4 * 3 + 12 * 2
    # The head reads channel 0 (features 0 to 3) and channel 2 (8 to 11) of the second layer, that 0 and 2 of the first.
    chosen = {"second": kept(4, 0, 2), "head": kept(12, 0, 1, 9)}
    assert graph.flops(chosen).item() == 16 * 9 * 1 * 2 + 4 * 9 * 2 * 2 + 3 * 2
    assert [graph.layers[name].prunable for name in ("first", "second", "head")] == [False, True, True]


def test_flops_of_a_residual_stream_by_hand():
    graph = ChannelGraph(Residual(), (1, 1, 1))
    # The stem makes {0, 1} for the block and {1, 2} for the head, the block {1, 2}.
    chosen = {"block": kept(4, 0, 1), "head": kept(4, 1, 2)}
    assert graph.flops(chosen).item() == 1 * 3 + 2 * 2 + 2 * 2
    # The derivative in a channel that is not kept is what keeping it would add.
    for name, channels in chosen.items():
        channels.requires_grad_(True)
        (derivative,) = torch.autograd.grad(graph.flops(chosen), channels)
        for channel in (channels == 0).nonzero().flatten():
            more = graph.flops(chosen | {name: channels.detach().index_fill(0, channel, 1.0)}) - graph.flops(chosen)
            assert derivative[channel].item() == more.item() > 0


@pytest.mark.parametrize(
    "between", [nn.Softmax(dim=1), nn.Conv2d(4, 4, 1, groups=2), nn.Sequential(nn.ReLU(), nn.LayerNorm(1))]
)
def test_an_operation_that_may_mix_channels_needs_them_all(between):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), between, nn.Conv2d(4, 2, 1))
    graph = ChannelGraph(model, (1, 1, 1))
    mixing = 8 if isinstance(between, nn.Conv2d) else 0
    assert graph.flops({"2": kept(4, 3)}).item() == 4 + mixing + 1 * 2


POOLED = [
    ((4, 4), nn.MaxPool1d(3, 1, 1)),
    ((4, 4), nn.AdaptiveAvgPool1d(4)),
    ((4, 4), lambda x: nn.functional.avg_pool1d(x, 3, 1, 1)),
    ((4, 4), lambda x: nn.functional.max_pool1d(x, 3, 1, 1)),
    ((4, 4, 3), nn.AvgPool2d(3, 1, 1)),
    ((4, 4, 3), lambda x: nn.functional.adaptive_max_pool2d(x, (4, 3))),
    ((4, 4, 3, 2), nn.MaxPool3d(3, 1, 1)),
]


@pytest.mark.parametrize(("shape", "pool"), POOLED)
def test_a_pool_of_as_many_dimensions_as_follow_the_images_mixes_channels(shape, pool):
    """torch takes what lacks the dimension of channels for a single image."""
    pool = pool if isinstance(pool, nn.Module) else Calls(pool)
    dims = len(shape) - 2
    layers = (
        [nn.Linear(5, 4), nn.Linear(4, 2)] if not dims else [CONVOLUTIONS[dims](c, o, 1) for c, o in ((5, 4), (4, 2))]
    )
    model = nn.Sequential(layers[0], pool, layers[1])
    graph = ChannelGraph(model, (5, *shape[2:]))
    pixels = int(np.prod(shape[2:]))
    assert graph.flops({"2": kept(4, 3)}).item() == pixels * (5 * 4 + 1 * 2)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    smaller = shrink(model, (5, *shape[2:]), {"2": kept(4, 0, 3).bool()})
    x = torch.rand(1, 5, *shape[2:])
    with torch.no_grad():
        model[2].weight.data[:, 1:3] = 0
        torch.testing.assert_close(smaller(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_dense_flops_are_those_that_torch_counts(narrow, name):
    model = narrow(name).eval()
    assert ChannelGraph(model, IMAGE).dense_flops == measured_flops(model)


class Between(nn.Module):
    """4 channels of 2x2 pixels on [B, 1, 2, 2] images, some operations, and a head."""

    def __init__(self, *between: nn.Module, flatten=lambda image, x: x.flatten(1)) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(1, 4, 1), nn.Sequential(*between)
        self.second = nn.Conv2d(4, 3, 1)
        self.head, self.flatten = nn.Linear(12, 2), flatten

    def forward(self, image):
        return self.head(self.flatten(image, self.second(self.between(self.first(image)))))


class Calls(nn.Module):
    """A function as a module that fx looks into."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def unpacked(image, x):
    b, c, h, w = x.shape
    return x.view(b, c * h * w)


def sizes_unpacked(image, x):
    b, c, _, _ = x.size()
    return x.reshape(b, 4 * c)


FLATTENS = {
    "size": lambda image, x: x.view(x.size(0), -1),
    "shape": lambda image, x: x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
    "images": lambda image, x: x.reshape(image.size(0), -1),
    "constant": lambda image, x: x.view(-1, 12),
    "function": lambda image, x: torch.reshape(x, (x.shape[0], -1)),
    "numel": lambda image, x: x.view(-1, x.shape[1:].numel()),
    "unpacked": unpacked,
    "sizes_unpacked": sizes_unpacked,
}
ACTIVATIONS = [nn.PReLU(), nn.PReLU(4), nn.Hardswish(), Calls(nn.functional.hardswish)]


@pytest.mark.parametrize("between", ACTIVATIONS)
def test_activations_let_channels_through(between):
    graph = ChannelGraph(Between(between), (1, 2, 2))
    # The first layer makes the two channels that the second reads, the second what the head reads: channels 0 and 2.
    chosen = {"second": kept(4, 1, 3), "head": kept(12, 0, 3, 9)}
    assert graph.flops(chosen).item() == 4 * 1 * 2 + 4 * 2 * 2 + 3 * 2


@pytest.mark.parametrize("flatten", FLATTENS)
def test_a_flat_vector_lets_channels_through(flatten):
    graph = ChannelGraph(Between(flatten=FLATTENS[flatten]), (1, 2, 2))
    chosen = {"second": kept(4, 1, 3), "head": kept(12, 0, 3, 9)}
    assert graph.flops(chosen).item() == 4 * 1 * 2 + 4 * 2 * 2 + 3 * 2
    assert graph.layers["head"].prunable


@pytest.mark.parametrize(
    "other",
    [
        lambda image, x: x.flatten(1) / x.size(1),
        lambda image, x: x.view(x.size(0), 3, -1).softmax(1).view(x.size(0), -1),
        lambda image, x: (x + x.shape[1]).flatten(1),
    ],
)
def test_a_number_of_channels_that_is_computed_with_needs_them_all(other):
    graph = ChannelGraph(Between(flatten=other), (1, 2, 2))
    assert graph.flops({"head": kept(12, 0)}).item() == 4 * 4 + 4 * 4 * 3 + 1 * 2


class ReadsAWeight(Between):
    def forward(self, image):
        x = self.second(self.first(image))
        return self.head(nn.functional.conv2d(x, self.second.weight.transpose(0, 1))[:, :3].flatten(1))


class KeepsAWeight(Between):
    def __init__(self) -> None:
        super().__init__()
        self.also = self.second.weight

    def forward(self, image):
        return super().forward(image) + self.also.sum()


class SharesAWeight(Between):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.second = nn.Conv2d(4, 3, 1)
        self.between[1].weight = self.between[0].weight


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ReadsAWeight, "second"),
        (KeepsAWeight, "second"),
        (SharesAWeight, r"between\.0"),
    ],
)
def test_a_weight_that_is_used_outside_its_layer_is_refused_by_name(make, name):
    with pytest.raises(InputError, match=rf"a parameter of {name} is used outside that layer"):
        ChannelGraph(make(), (1, 2, 2))


class ReadsAttention(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.attn, self.function = nn.MultiheadAttention(4, 2, batch_first=True), function

    def forward(self, x):
        return self.attn(x, x, x)[0] + self.function(self.attn, x)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda attn, x: nn.functional.linear(x, attn.in_proj_weight)[..., :4], "attn"),
        (lambda attn, x: nn.functional.linear(x, attn.out_proj.weight), "attn"),
        (lambda attn, x: attn.out_proj(x), "attn"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_an_attention_whose_weights_are_used_outside_it_is_refused_too(function, name, masked):
    model = ReadsAttention(function)
    if masked:
        attach(model, 0.5)
    with pytest.raises(InputError, match=f"a parameter of {name} is used outside that layer"):
        ChannelGraph(model, (3, 4))


class ByKeyword(nn.Module):
    """The layers of Between, called by keyword, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 3, 1)
        self.head = nn.Linear(12, 2)

    def forward(self, image):
        return self.head(input=self.second(input=self.first(input=image)).flatten(1))


def test_layers_that_are_called_by_keyword_count_too():
    graph = ChannelGraph(ByKeyword(), (1, 2, 2))
    assert graph.dense_flops == measured_flops(ByKeyword(), (1, 2, 2))
    chosen = {"second": kept(4, 1, 3), "head": kept(12, 0, 3, 9)}
    assert graph.flops(chosen).item() == 4 * 1 * 2 + 4 * 2 * 2 + 3 * 2


def test_images_that_the_network_does_not_take_are_refused_in_one_line(capsys):
    with pytest.raises(
        InputError, match=r"does not take images of shape \[1, 3, 3\] \(.*27.*\); give others"
    ) as refused:
        ChannelGraph(Between(), (1, 3, 3))
    assert "\n" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


def test_a_masked_weight_that_is_used_outside_its_layer_is_refused_too():
    model = attach_masks(ReadsAWeight(), lambda name, layer: ChannelMask(channel_scores(layer.weight), 0.5, 0))
    with pytest.raises(InputError, match="a parameter of second is used outside that layer"):
        ChannelGraph(model, (1, 2, 2))


def test_a_network_with_control_flow_is_refused():
    class Undecided(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match="cannot be traced"):
        ChannelGraph(Undecided(nn.Conv2d(1, 2, 1)), (1, 2, 2))


def test_all_layers_but_the_first_are_masked_and_shortcuts_are_tied(narrow):
    model = narrow("resnet18")
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    attached(model, "harp-channels", flops_reduction=4)
    found = channel_masks(model)
    assert found.keys() == layers - {"conv1"}
    owner = {name: next(n for n, mask in found.items() if mask.rate is found[name].rate) for name in found}
    assert {name: other for name, other in owner.items() if other != name} == SHORTCUTS
    assert all(mask.keep == pytest.approx(0.99) for mask in found.values())
    assert found["layer4.0.conv2"].n_keep == 32


@pytest.mark.parametrize("reduction", [4, 15])
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_hydra_takes_the_largest_k_within_the_target(narrow, name, reduction):
    model = narrow(name)
    dense = measured_flops(model.eval())
    method = attached(model, "hydra-channels", flops_reduction=reduction)
    shuffled_scores(model)
    method.end_epoch(model, 0)
    found = channel_masks(model).values()
    assert len({mask.keep for mask in found}) == 1
    assert method.flops(model).item() <= Fraction(dense, reduction)
    next_k = min((mask.n_keep + 0.5) / mask.scores.numel() for mask in found)
    for mask in found:
        mask.nominal_keep.fill_(next_k + 1e-9)
    assert method.flops(model).item() > Fraction(dense, reduction)


@pytest.mark.parametrize(("start", "reduction"), [(0.95, 4), (0.05, 4), (0.6, 15)])
def test_harp_ends_one_channel_below_the_target(narrow, start, reduction):
    model = narrow("resnet18")
    dense = measured_flops(model.eval())
    method = attached(model, "harp-channels", flops_reduction=reduction)
    shuffled_scores(model)
    found = channel_masks(model)
    for index, mask in enumerate(found.values()):
        mask.rate.data.fill_(torch.tensor(start).logit() + 0.1 * (index % 5))
    method.cut_to_budget(model)

    counts = {name: mask.n_keep for name, mask in found.items()}
    assert method.flops(model).item() <= Fraction(dense, reduction)
    assert all(counts[name] == counts[other] for name, other in SHORTCUTS.items())
    assert min(mask.keep for mask in found.values()) >= 0.1 / reduction
    method.cut_to_budget(model)
    assert counts == {name: mask.n_keep for name, mask in found.items()}
    for mask in found.values():
        if mask.n_keep < mask.scores.numel():
            before = mask.rate.detach().clone()
            mask.rate.data += (1.0 / mask.scores.numel()) / (mask.keep * (1 - mask.keep)) * 1.3
            assert method.flops(model).item() > Fraction(dense, reduction)
            mask.rate.data.copy_(before)


def test_the_penalty_and_its_gradient_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1))
    method = attached(model, "harp-channels", (1, 1, 1), flops_reduction=2, penalty=0.5)
    found = channel_masks(model)
    found["1"].rate.data.fill_(0.1)  # k = 0.05 + 0.95 * 0.525 = 0.549: two of four channels
    found["2"].rate.data.fill_(3.0)  # k = 0.955: three of three
    penalty = method.penalty(model, 2)
    # FLOPs are n2 + n2 n3 + 2 n3 = 2 + 6 + 6, of 4 + 12 + 6 and thus a target of 11.
    assert penalty.item() == pytest.approx(0.5 * 3 * (14 / 11 - 1))
    penalty.backward()
    for name, slope in (("1", 4 * (1 + 3)), ("2", 3 * (2 + 2))):
        sigmoid = found[name].rate.detach().sigmoid()
        expected = 0.5 * 3 * slope * 0.95 * sigmoid * (1 - sigmoid) / 11
        assert found[name].rate.grad.item() == pytest.approx(expected.item(), rel=1e-5)
        assert found[name].scores.grad is None
    assert method.cut_to_budget(model)
    assert not method.cut_to_budget(model)
    assert method.penalty(model, 2).item() == 0


def test_full_size_networks_need_about_the_published_rates():
    # FLOPs fall about as k squared; where a stream has several consumers, which choose differently, more is left.
    for name, reduction, k in (("vgg16_bn", 4, 0.5), ("vgg16_bn", 15, 0.26), ("resnet18", 4, 0.5)):
        model = build(name)
        attached(model, "hydra-channels", (3, 32, 32), flops_reduction=reduction)
        assert {mask.keep for mask in channel_masks(model).values()}.pop() == pytest.approx(k, rel=0.15)


@pytest.mark.parametrize("name", ["hydra-channels", "harp-channels"])
def test_what_cannot_be_pruned_is_refused_in_a_line(narrow, name):
    with pytest.raises(InputError, match=r"method\.flops_reduction is not set"):
        build_method(MethodSettings(name=name))
    with pytest.raises(InputError, match="no layer of this network"):
        attached(narrow("vit"), name, flops_reduction=4)
    model = narrow("vgg16_bn")
    with pytest.raises(InputError, match=r"method\.flops_reduction = 1000: .* lower it"):
        attached(model, name, flops_reduction=1000).cut_to_budget(model)


def test_a_loaded_checkpoint_has_the_same_masks_and_one_tensor_for_tied_rates(tmp_path, new_run, data):
    run = new_run(
        tmp_path / "run",
        network={"name": "resnet18", "width": 4},
        method={"name": "harp-channels", "flops_reduction": 4, "penalty": 300.0},
        pretrain={"epochs": 1},
    )
    stages = Stages(run, data)
    stages.pretrain()
    stages.prune()
    model = load_checkpoint(run.checkpoint("prune-epoch-003")).model
    found = channel_masks(model)
    assert all(found[name].rate is found[other].rate for name, other in SHORTCUTS.items())
    assert len({id(mask.rate) for mask in found.values()}) == len(found) - len(SHORTCUTS)
    searched = searched_parameters(model, run.config.prune)
    assert len({id(parameter) for parameter in searched}) == len(searched)
    # The search has moved them, by this method's formula.
    assert max(mask.keep for mask in found.values()) < 0.98
    assert all(mask.keep_min == pytest.approx(0.1 / 4) for mask in found.values())
    saved = masks_in(run.masks(3))
    tensors, header = load_tensors(run.checkpoint("prune-epoch-003"))
    for found_masks in (masks(model), masks_without_weights(header["network"], tensors, header["keep"])):
        assert found_masks.keys() == saved.keys()
        assert all(np.array_equal(saved[name], mask) for name, mask in found_masks.items())


class Crash(Callback):
    def on_iteration(self, loop, step):
        if loop.stage == "prune" and loop.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["hydra-channels", "harp-channels"])
def test_a_resumed_search_ends_as_one_that_was_not_interrupted(tmp_path, new_run, data, name):
    sections = {
        "network": {"name": "resnet18", "width": 4},
        "method": {"name": name, "flops_reduction": 4, "penalty": 10.0},
        "pretrain": {"epochs": 1},
    }
    whole, broken = (new_run(tmp_path / part, **sections) for part in ("whole", "broken"))
    for stage in ("pretrain", "prune"):
        getattr(Stages(whole, data), stage)()
    with pytest.raises(KeyboardInterrupt):
        Stages(broken, data, callbacks=[Crash()]).all()
    Stages(broken, data).prune()
    ours, theirs = (load_checkpoint(run.checkpoint("prune-best")).model.state_dict() for run in (whole, broken))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("name", "network"), [("hydra-channels", "vgg16_bn"), ("harp-channels", "resnet18")])
def test_a_search_with_s2ap_on_digits_ends_within_the_target(tmp_path, new_run, name, network):
    run = new_run(
        tmp_path / "run",
        data={"name": "digits"},
        network={"name": network, "width": 4},
        method={"name": name, "flops_reduction": 4, "penalty": 100.0},
        minimizer={"name": "s2ap", "gamma": 0.01, "warmup": 1},
        pretrain={"epochs": 1, "batch_size": 256},
        prune={"epochs": 2, "batch_size": 128},
        finetune={"epochs": 1, "batch_size": 256, "awp": True},
    )
    stages = Stages(run, load("digits"))
    stages.pretrain()
    stages.prune()
    stages.finetune()

    dense = measured_flops(load_checkpoint(run.checkpoint("pretrain")).model)
    searched, finetuned = (load_checkpoint(run.checkpoint(f"{stage}-best")).model for stage in ("prune", "finetune"))
    chosen = kept_channels(searched)
    assert measured_flops(shrink(searched, IMAGE, chosen)) <= dense / 4
    # S2AP and the optimizer have moved the channels' scores, and finetuning leaves the channels alone.
    start = scores(load_checkpoint(run.checkpoint("prune-epoch-000")).model)
    last = load_checkpoint(run.checkpoint("prune-epoch-002")).model
    assert all(not torch.equal(start[key], moved) for key, moved in scores(last).items())
    # HARP's penalty has brought the rates down, which started at 0.99.
    assert max(mask.keep for mask in channel_masks(last).values()) < 0.98
    assert all(torch.equal(bits, chosen[layer]) for layer, bits in kept_channels(finetuned).items())
