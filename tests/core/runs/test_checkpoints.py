"""Masks are selected from a checkpoint's tensors alone, as the network itself selects them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import fix_masks, masks, scores
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.runs.checkpoints import select_masks

KEEP = 0.3


def searched(model: nn.Module, method: str, **settings: object) -> nn.Module:
    """Mask a network by a method, and move its scores and rates."""
    rng = torch.Generator().manual_seed(0)
    attached = build_method(MethodSettings(name=method, keep=KEEP, **settings))
    attached.image_shape = (1, 8, 8)
    attached.attach(model, rng)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("scores", "rate")):
                parameter += torch.randn(parameter.shape, generator=rng)
    return model


@pytest.mark.parametrize(
    ("method", "settings"),
    [("hydra", {"keep_layers": {"conv2": 0.7}}), ("rlth", {}), ("hydra-erk", {}), ("harp", {})],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_masks_without_the_network_are_the_network_s(
    narrow: Callable[..., nn.Module], method: str, settings: dict[str, object], fixed: bool
) -> None:
    model = searched(narrow(), method, **settings)
    expected = {name: mask.clone() for name, mask in masks(model).items()}
    found = select_masks(plain_state_dict(fix_masks(model) if fixed else model), KEEP)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert 0 < sum(int(mask.sum()) for mask in found.values()) < sum(mask.numel() for mask in found.values())


@pytest.mark.parametrize("method", ["hydra", "harp-units"])
def test_an_attention_s_masks_are_found_under_its_weights_names(narrow: Callable[..., nn.Module], method: str) -> None:
    model = searched(narrow("vit"), method)
    found = select_masks(plain_state_dict(model), KEEP)
    assert found.keys() == masks(model).keys()
    assert all(torch.equal(found[name], mask) for name, mask in masks(model).items())


def test_masks_that_the_tensors_alone_do_not_say_are_refused(narrow: Callable[..., nn.Module]) -> None:
    channels = plain_state_dict(searched(narrow(), "hydra-channels", flops_reduction=1.5))
    with pytest.raises(InputError, match="of channels; name the network"):
        select_masks(channels, KEEP)
    state = plain_state_dict(searched(narrow(), "hydra"))
    with pytest.raises(InputError, match=r"lacks conv2\.weight"):
        select_masks({name: tensor for name, tensor in state.items() if name != "conv2.weight"}, KEEP)
    with pytest.raises(InputError, match=r"conv1\.scores"):
        select_masks(state | {"conv1.scores": state["conv1.scores"][:1]}, KEEP)
    with pytest.raises(InputError, match="NaN"):
        select_masks(state | {"linear.scores": state["linear.scores"] * torch.nan}, KEEP)
    flat = {"a.weight": torch.tensor(1.0), "a.scores": torch.tensor(1.0), "a.rate": torch.zeros(1)}
    for shapeless in (flat, flat | {"a.unit": torch.zeros(1, dtype=torch.int64)}, {"a.weight": torch.zeros(0, 4)}):
        with pytest.raises(InputError, match=r"a\.weight has shape"):
            select_masks({"a.scores": torch.zeros(0, 4)} | shapeless, KEEP)
    for stray in ({"linear.keep": torch.tensor(0.5), "linear.rate": torch.tensor(0.5)}, {"bn1.rate": torch.zeros(())}):
        with pytest.raises(InputError, match=r"unknown \w+\.rate"):
            select_masks(state | stray, KEEP)
    with pytest.raises(InputError, match="no masks"):
        select_masks(narrow().state_dict(), KEEP)


def test_the_scores_that_masks_are_selected_from_stay_as_they_are(narrow: Callable[..., nn.Module]) -> None:
    model = searched(narrow(), "hydra")
    before = {name: value.detach().clone() for name, value in scores(model).items()}
    select_masks(plain_state_dict(model), KEEP)
    assert all(torch.equal(before[name], value) for name, value in scores(model).items())
