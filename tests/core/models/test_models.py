"""Networks against the published checkpoints' layout, naive renderings and torch's own transformer."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2ap_core import models
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import maskable_layers, masked_layers
from s2ap_core.masks.masking import attach, density, scores

REFERENCE = json.loads((Path(__file__).parents[2] / "reference" / "state_dicts.json").read_text())
PUBLISHED = {"resnet18": 10, "vgg16_bn": 10, "wrn_28_4": 10, "resnet50": 1000}
NARROW = {"resnet18": 8, "vgg16_bn": 8, "wrn_28_4": 8, "resnet50": 4, "vit": 16}
State = dict[str, Tensor]


def published(tool: str, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes by key, without the block that HYDRA's WideResNet never uses."""
    entries = REFERENCE[f"{tool}/{name}"].items()
    return {key: tuple(shape) for key, shape in entries if not key.startswith("sub_block1")}


def meta(name: str, **sizes: int) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, **sizes)


def narrow(name: str, **options: int | bool) -> nn.Module:
    torch.manual_seed(1)
    return models.build(name, width=NARROW[name], **options)


# --- names, shapes and counts ---


@pytest.mark.parametrize("tool", ["hydra", "harp"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(tool: str, name: str) -> None:
    state = meta(name, classes=PUBLISHED[name]).state_dict()
    expected = {
        key: shape for key, shape in published(tool, name).items() if not key.endswith((".popup_scores", ".k_score"))
    }
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected


@pytest.mark.parametrize("tool", ["hydra", "harp"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_maskable_layers_are_those_with_published_scores(tool: str, name: str) -> None:
    layers = maskable_layers(meta(name, classes=PUBLISHED[name]))
    scored = {
        key.removesuffix(".popup_scores"): math.prod(shape)
        for key, shape in published(tool, name).items()
        if key.endswith(".popup_scores")
    }
    assert {layer: module.weight.numel() for layer, module in layers.items()} == scored
    assert sum(scored.values()) > 5_000_000


def test_vit_masks_every_linear_layer_but_the_head() -> None:
    model = meta("vit")
    count = sum(layer.weight.numel() for layer in maskable_layers(model).values())
    width, mlp, depth, patch = 384, 1536, 8, 4
    assert count == depth * (3 * width**2 + width**2 + 2 * width * mlp) + 3 * patch**2 * width
    assert model.positions.shape == (1, 64, width)
    assert {block.attn.heads for block in model.blocks} == {6}
    masked = attach(narrow("vit", input_size=8), 0.5)
    dense = {name for name, m in masked.named_modules() if isinstance(m, nn.Linear)} - masked_layers(masked).keys()
    assert dense == {"head"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"conv1.weight": 8, "layer4.1.bn2.weight": 64, "linear.weight": 10}),
        ("vgg16_bn", {"features.0.weight": 8, "features.40.weight": 64, "classifier.0.weight": 32}),
        (
            "wrn_28_4",
            {"conv1.weight": 2, "block1.layer.3.conv2.weight": 8, "block3.layer.0.conv1.weight": 32},
        ),
        ("resnet50", {"conv1.weight": 8, "layer1.0.conv3.weight": 32, "layer4.2.conv3.weight": 256}),
        ("vit", {"blocks.0.attn.qkv.weight": 24, "blocks.7.fc1.weight": 32, "head.weight": 10}),
    ],
)
def test_width_scales_all_stages(name: str, expected: dict[str, int]) -> None:
    state = meta(name, width=8).state_dict()
    assert {key: state[key].shape[0] for key in expected} == expected


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (192, 3), (48, 1), (200, 2), (130, 2), (131, 1)])
def test_vit_heads_divide_the_width(width: int, heads: int) -> None:
    assert meta("vit", width=width).blocks[0].attn.heads == heads


# --- the same function as the published networks, rendered from their state dicts ---


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, gain, shift = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + shift


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def render_resnet18(state: State, x: Tensor) -> Tensor:
    x = norm(state, "bn1", conv(state, "conv1", x)).relu()
    for stage in (1, 2, 3, 4):
        for i in (0, 1):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x, stride)).relu()
            out = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", out))
            if f"{block}.shortcut.0.weight" in state:
                x = norm(state, f"{block}.shortcut.1", conv(state, f"{block}.shortcut.0", x, stride))
            x = (out + x).relu()
    return linear(state, "linear", F.avg_pool2d(x, 4).flatten(1))


def render_vgg16_bn(state: State, x: Tensor) -> Tensor:
    for i in (0, 3, "pool", 7, 10, "pool", 14, 17, 20, "pool", 24, 27, 30, "pool", 34, 37, 40):
        if i == "pool":
            x = F.max_pool2d(x, 2)
        else:
            x = norm(state, f"features.{i + 1}", conv(state, f"features.{i}", x)).relu()
    x = linear(state, "classifier.0", x.flatten(1)).relu()
    return linear(state, "classifier.4", linear(state, "classifier.2", x).relu())


def render_wrn_28_4(state: State, x: Tensor) -> Tensor:
    x = conv(state, "conv1", x)
    for stage in (1, 2, 3):
        for i in range(4):
            block, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            active = norm(state, f"{block}.bn1", x).relu()
            out = norm(state, f"{block}.bn2", conv(state, f"{block}.conv1", active, stride)).relu()
            if i == 0:
                x = conv(state, f"{block}.convShortcut", active, stride)
            x = x + conv(state, f"{block}.conv2", out)
    return linear(state, "fc", F.avg_pool2d(norm(state, "bn1", x).relu(), 8).flatten(1))


def render_resnet50(state: State, x: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    x = norm(state, "bn1", conv(state, "conv1", (x - mean) / std, 2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            block, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = norm(state, f"{block}.bn1", conv(state, f"{block}.conv1", x)).relu()
            out = norm(state, f"{block}.bn2", conv(state, f"{block}.conv2", out, stride)).relu()
            out = norm(state, f"{block}.bn3", conv(state, f"{block}.conv3", out))
            if i == 0:
                x = norm(state, f"{block}.downsample.1", conv(state, f"{block}.downsample.0", x, stride))
            x = (out + x).relu()
    return linear(state, "fc", x.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "render", "size"),
    [
        ("resnet18", render_resnet18, 32),
        ("vgg16_bn", render_vgg16_bn, 32),
        ("wrn_28_4", render_wrn_28_4, 32),
        ("resnet50", render_resnet50, 224),
    ],
)
def test_forward_equals_a_rendering_of_the_published_network(name: str, render, size: int) -> None:
    model = narrow(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh statistics would hide a misplaced normalisation
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = render(model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_vit_equals_torchs_transformer_and_a_patch_convolution() -> None:
    torch.manual_seed(1)
    model = models.build("vit", width=128).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    layers = []
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            128, nhead=2, dim_feedforward=512, dropout=0, activation="gelu", batch_first=True, norm_first=True
        ).double()
        parts = {
            "self_attn.in_proj_": block.attn.qkv,
            "self_attn.out_proj.": block.attn.proj,
            "linear1.": block.fc1,
            "linear2.": block.fc2,
            "norm1.": block.norm1,
            "norm2.": block.norm2,
        }
        layer.load_state_dict({k + n: p for k, part in parts.items() for n, p in part.named_parameters()})
        layers.append(layer)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        kernel = model.embed.weight.view(128, 3, 4, 4)
        tokens = F.conv2d(x, kernel, model.embed.bias, stride=4).flatten(2).transpose(1, 2)
        tokens = nn.Sequential(*layers)(tokens + model.positions)
        expected = model.head(model.norm(tokens).mean(1))
        torch.testing.assert_close(model(x), expected)


# --- small images, narrow networks ---


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [(name, size, channels) for name in NARROW for size, channels in ((8, 1), (32, 3))] + [("resnet50", 224, 3)],
)
def test_every_layer_learns_at_every_size(name: str, size: int, channels: int, mode: str) -> None:
    model = narrow(name, classes=7, input_size=size, input_channels=channels)
    model.train(mode == "train")
    x = torch.rand(4, channels, size, size, requires_grad=True)
    logits = model(x)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, torch.arange(4)).backward()
    grads = {"input": x.grad} | {key: p.grad for key, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert [key for key, g in grads.items() if key.endswith(("input", "weight")) and not g.any()] == []


@pytest.mark.parametrize(
    ("name", "size", "layer", "shape"),
    [
        ("resnet18", 8, "layer4", (2, 2)),
        ("resnet18", 16, "layer4", (2, 2)),
        ("resnet18", 32, "layer4", (4, 4)),
        ("vgg16_bn", 8, "features", (2, 2)),
        ("vgg16_bn", 32, "features", (2, 2)),
        ("vgg16_bn", 8, "avgpool", (2, 2)),
        ("wrn_28_4", 4, "block3", (2, 2)),
        ("wrn_28_4", 8, "block3", (2, 2)),
        ("wrn_28_4", 32, "block3", (8, 8)),
        ("resnet50", 8, "layer1", (8, 8)),
        ("resnet50", 8, "layer4", (2, 2)),
        ("resnet50", 16, "layer4", (2, 2)),
        ("resnet50", 32, "layer1", (8, 8)),
        ("resnet50", 224, "layer4", (7, 7)),
        ("vit", 8, "embed", (16, 16)),
        ("vit", 16, "embed", (16, 16)),
        ("vit", 32, "embed", (64, 16)),
    ],
)
def test_maps_shrink_as_far_as_the_image_allows_but_not_below_2x2(
    name: str, size: int, layer: str, shape: tuple[int, int]
) -> None:
    model = narrow(name, input_size=size).eval()
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda _module, _args, out: seen.append(out.shape[-2:]))
    with torch.no_grad():
        model(torch.rand(1, 3, size, size))
    assert seen == [shape]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_do_not_depend_on_the_images(name: str) -> None:
    states = [meta(name, width=8, input_size=size).state_dict() for size in (4, 8, 32, 224)]
    shapes = [{key: tuple(tensor.shape) for key, tensor in state.items()} for state in states]
    assert shapes[1:] == shapes[:-1]


@pytest.mark.parametrize("name", NARROW)
def test_masked_network_runs_and_its_scores_get_gradients(name: str) -> None:
    model = attach(narrow(name, input_size=8, input_channels=1), 0.5)
    assert density(model) == pytest.approx(0.5, abs=1e-3)
    F.cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.arange(4)).backward()
    found = scores(model)
    assert len(found) == len(maskable_layers(model))
    assert all(s.grad is not None and s.grad.isfinite().all() and s.grad.any() for s in found.values())


@pytest.mark.parametrize("name", NARROW)
def test_without_affine_parameters_only_the_normalisation_loses_them(name: str) -> None:
    plain, bare = (narrow(name, input_size=8, norm_affine=affine) for affine in (True, False))
    norms = {n for n, m in plain.named_modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)}
    lost = {key for key, _ in plain.named_parameters()} - {key for key, _ in bare.named_parameters()}
    assert lost == {f"{n}.{part}" for n in norms for part in ("weight", "bias")}
    assert bare(torch.rand(4, 3, 8, 8)).isfinite().all()


def test_vit_hessian_vector_product_equals_a_finite_difference() -> None:
    model = narrow("vit", input_size=8, input_channels=1).double()
    x, y = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    params = list(model.parameters())
    v = [torch.randn_like(p) for p in params]

    def gradient(create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(model(x), y), params, create_graph=create_graph)

    def shifted(step: float) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, direction in zip(params, v, strict=True):
                p.add_(direction, alpha=step)
        grads = gradient()
        with torch.no_grad():
            for p, direction in zip(params, v, strict=True):
                p.sub_(direction, alpha=step)
        return grads

    with sdpa_kernel(SDPBackend.MATH):
        hvp = torch.autograd.grad(gradient(create_graph=True), params, grad_outputs=v)
        step = 1e-5
        pairs = zip(shifted(step), shifted(-step), strict=True)
        difference = [(after - before) / (2 * step) for after, before in pairs]
    flat, expected = (torch.cat([t.flatten() for t in ts]) for ts in (hvp, difference))
    assert expected.norm() > 0
    assert (flat - expected).norm() < 1e-5 * expected.norm()


# --- the registry ---


def test_a_network_from_outside_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.NETWORKS, "mine", lambda classes, **_: nn.Linear(5, classes))
    assert models.build("mine", classes=3)(torch.rand(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        (
            "inception",
            {},
            r"unknown network 'inception'.*resnet18, vgg16_bn, wrn_28_4, resnet50, preact_resnet18, vgg16_linear, vit",
        ),
        ("resnet81", {}, r"unknown network 'resnet81': did you mean resnet18 or"),
        ("resnet18", {"classes": 1}, "classes = 1"),
        ("vgg16_bn", {"width": 0}, "width = 0"),
        ("wrn_28_4", {"input_size": -8}, "input_size = -8"),
        ("resnet50", {"input_channels": 0}, "input_channels = 0"),
        ("vit", {"input_size": 3}, "input_size = 3.*4x4"),
    ],
)
def test_unusable_requests_are_named(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        models.build(name, **sizes)
    assert "\n" not in str(caught.value)
