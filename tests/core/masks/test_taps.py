"""Blind taps against what backward passes over many random images leave without a gradient."""

import pytest
import torch
from torch import Tensor, nn

from s2ap_core import models
from s2ap_core.masks.layers import layer_masks, maskable_layers
from s2ap_core.masks.masking import attach, attach_masks, fix_masks
from s2ap_core.masks.parametrization import ChannelMask
from s2ap_core.masks.taps import blind_taps, count_blind

NARROW = {"resnet18": 4, "vgg16_bn": 4, "wrn_28_4": 8, "resnet50": 2}


def seen(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Where in each kernel any weight ever gets a gradient of a random loss, of its shape, by brute force."""
    layers = {
        name: layer.module for name, layer in maskable_layers(model).items() if hasattr(layer.module, "kernel_size")
    }
    sums = {name: torch.zeros(layer.kernel_size, dtype=torch.float64) for name, layer in layers.items()}
    for seed in range(3):
        torch.manual_seed(seed)
        logits = model(torch.rand(8, *shape, dtype=torch.float64))
        gradients = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), [w.weight for w in layers.values()])
        for name, gradient in zip(layers, gradients, strict=True):
            sums[name] += gradient.abs().sum((0, 1))
    return {name: total > 0 for name, total in sums.items()}


def network(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, width=NARROW[name], input_size=size, input_channels=1).double().train()


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("size", [4, 8, 12, 16, 32])
def test_a_network_made_for_a_size_has_no_blind_tap(name: str, size: int) -> None:
    model = network(name, size)
    assert all(every.all() for every in seen(model, (1, size, size)).values())
    found = blind_taps(model.eval(), torch.rand(1, 1, size, size, dtype=torch.float64))
    assert not any(taps.any() for taps in found.values())
    assert len(found) == sum(isinstance(layer.module, nn.Conv2d) for layer in maskable_layers(model).values())


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 2), ("resnet18", 8), ("vgg16_bn", 16), ("wrn_28_4", 2), ("wrn_28_4", 4), ("resnet50", 8)],
)
def test_on_smaller_images_it_has_those_that_no_loss_reaches(name: str, size: int) -> None:
    model = network(name, 32)
    expected = {layer: ~reached for layer, reached in seen(model, (1, size, size)).items()}
    found = blind_taps(model.eval(), torch.rand(1, 1, size, size, dtype=torch.float64))
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in expected.items()}
    assert any(taps.any() for taps in found.values())


class Odd(nn.Module):
    """Convolutions of other strides, paddings, dilations and kernels, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 3, (1, 5), padding=(0, 4), dilation=(1, 2))
        self.same = nn.Conv2d(3, 4, 5, padding="same", dilation=2)
        self.far = nn.Conv2d(4, 4, 3, stride=3, padding=2, groups=2)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(4, 2, 2)
        self.never = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mirrored(self.far(self.same(self.wide(x))))).flatten(1)


def test_strides_paddings_dilations_and_groups_are_torchs() -> None:
    torch.manual_seed(0)
    model = Odd().double()
    found = blind_taps(model, torch.rand(1, 1, 3, 4, dtype=torch.float64))
    never = found.pop("never")
    assert never.all()
    del model.never
    assert {n: t.tolist() for n, t in found.items()} == {n: (~t).tolist() for n, t in seen(model, (1, 3, 4)).items()}
    assert sum(int(taps.sum()) for taps in found.values()) > 10


class Other(nn.Module):
    """Convolutions in one and three dimensions, and transposed ones whose outputs are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(1, 4, 5, padding=2)
        self.up = nn.ConvTranspose1d(4, 4, 5, stride=2, padding=3, groups=2)
        self.volume = nn.Conv3d(4, 3, (3, 1, 3), padding=(1, 0, 1))
        self.spread = nn.ConvTranspose3d(3, 2, (3, 2, 1), padding=(1, 0, 0), dilation=(2, 1, 1), stride=(3, 1, 1))
        self.plane = nn.ConvTranspose2d(2, 2, 4, padding=2, output_padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.line(x))
        return self.plane(self.spread(self.volume(x[..., None, None])).flatten(3)).flatten(1)


@pytest.mark.parametrize("length", [2, 3])
def test_transposed_ones_and_other_dimensions_as_gradients_show(length: int) -> None:
    torch.manual_seed(0)
    model = Other().double()
    found = blind_taps(model, torch.rand(1, 1, length, dtype=torch.float64))
    assert {n: t.tolist() for n, t in found.items()} == {n: (~t).tolist() for n, t in seen(model, (1, length)).items()}
    assert any(taps.any() and not taps.all() for taps in found.values())


class Sized(nn.Module):
    """A transposed convolution that is asked for its output's size, and layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
        self.small = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(input=self.first(input=x), output_size=(2, 1))
        return self.small(x, output_size=[2 * size - 1 for size in x.shape[2:]]).flatten(1)


def test_a_size_that_the_call_asks_for_decides() -> None:
    torch.manual_seed(0)
    model = Sized().double()
    found = blind_taps(model, torch.rand(1, 1, 1, 1, dtype=torch.float64))
    assert {n: t.tolist() for n, t in found.items()} == {n: (~t).tolist() for n, t in seen(model, (1, 1, 1)).items()}
    assert found["up"].tolist() == [[True, True, True], [True, False, True], [True, False, True]]


def test_scores_are_counted_one_for_each_weight_or_channel() -> None:
    taps = torch.ones(3, 3, dtype=torch.bool)
    taps[1, 1] = False
    for model in (
        attach(nn.Sequential(nn.Conv2d(2, 5, 3)), 0.5),
        fix_masks(attach(nn.Sequential(nn.Conv2d(2, 5, 3)), 0.5)),
    ):
        (mask,) = layer_masks(model).values()
        assert count_blind(mask, taps) == 5 * 2 * 8
    channels = attach_masks(
        nn.Sequential(nn.Conv2d(2, 5, 3)), lambda _, __: ChannelMask(torch.rand(1, 2, 1, 1), 0.5, 0)
    )
    (mask,) = layer_masks(channels).values()
    assert count_blind(mask, taps) == 0
    assert count_blind(mask, torch.ones(3, 3, dtype=torch.bool)) == 2
