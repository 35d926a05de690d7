"""Top-k straight-through masks, as parametrizations of layers' weights.

A masked layer computes with ``w * M(s, k)``: the mask M keeps the entries of largest ``|s|`` (Eq. 3 of
the paper). Any ``nn.Module`` of the layers in
:mod:`s2ap_core.masks.kinds` can be masked; its classes and its forward pass stay as they are.

>>> import torch
>>> from torch import nn
>>> layer = attach(nn.Linear(4, 2, bias=False), keep=0.25)
>>> masks(layer)["weight"].sum().item()
2
"""

import copy
from collections.abc import Callable, Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.choice import chosen_layers, own_keeps, with_own_keeps
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import (
    is_parametrized,
    mask_of,
    maskable_layers,
    masked_layers,
    raw_weight,
    register,
    unmask,
)
from s2ap_core.masks.parametrization import FixedMask, Mask, ScoreMask, check_keep


def attach_masks(model: nn.Module, make: Callable[[str, Layer], Mask], only: Container[str] | None = None) -> nn.Module:
    """Mask ``model`` in place: each layer but embeddings, or those named in ``only``, with ``make(name, layer)``.

    Raises:
        InputError: if a layer is masked already, or if there is nothing to mask.
    """
    every = chosen_layers(model) if only is None else maskable_layers(model, embeddings=True)
    layers = {name: layer for name, layer in every.items() if only is None or name in only}
    for name, layer in layers.items():
        if is_parametrized(layer):
            raise InputError(f"layer {name or '(root)'} is masked already: bake the masks first")
    made = {name: make(name, layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        register(layer, made[name])
    return model


def attach(
    model: nn.Module,
    keep: float,
    *,
    keep_layers: Mapping[str, float] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    embeddings: bool = False,
) -> nn.Module:
    """Mask ``model`` in place with HYDRA's initial scores, keep rate ``keep`` in every layer.

    Args:
        keep_layers: keep rates of some layers, by pattern (see :mod:`s2ap_core.masks.choice`); of several for one layer
            the longest counts.
        only, skip: patterns of the layers that are masked, by default all, and of those that stay dense.
        embeddings: whether embeddings are masked too.

    Raises:
        InputError: if a keep rate is not in (0, 1], a pattern stands for no layer, or a layer is masked already.

    >>> model = attach(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)), 0.5, keep_layers={"1": 0.1})
    >>> [int(bits.sum()) for bits in masks(model).values()]
    [50, 10]
    """
    check_keep(keep)
    layers = chosen_layers(model, only=only, skip=skip, embeddings=embeddings)
    own = own_keeps(layers, keep_layers or {})
    make = with_own_keeps(lambda name, layer: ScoreMask(scaled_scores(layer), keep), own)
    return attach_masks(model, make, only=layers)


def scaled_scores(layer: Layer) -> Tensor:
    """Compute the first scores of HYDRA and HARP: ``sqrt(6 / fan_in) * w / max|w|``, of the weight's shape."""
    weight = layer.weight
    largest = weight.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    bound: float = (6 / layer.fan_in) ** 0.5
    return bound * weight.detach() / largest


def dead_channels(layer: Layer, bits: Tensor) -> Tensor:
    """Mark the output channels of a layer that keep no weight in a mask of its weight's shape: boolean [C_out]."""
    return ~layer.by_output(bits).bool().flatten(1).any(1)


@torch.no_grad()
def masks(model: nn.Module) -> dict[str, Tensor]:
    """Compute the boolean mask of every masked layer, by weight name (``conv1.weight``), of the weight's shape."""
    return {
        layer.tensor("weight"): mask_of(layer).mask().bool().expand(raw_weight(layer).shape)
        for layer in masked_layers(model).values()
    }


def scores(model: nn.Module) -> dict[str, nn.Parameter]:
    """Collect the score tensor of every masked layer, by score name (``conv1.scores``)."""
    pairs = ((layer, mask_of(layer)) for layer in masked_layers(model).values())
    return {layer.tensor("scores"): mask.scores for layer, mask in pairs if isinstance(mask, ScoreMask)}


def density(model: nn.Module) -> float:
    """Compute kept weights over maskable weights, in [0, 1]."""
    bits = masks(model)
    return sum(int(m.sum()) for m in bits.values()) / sum(m.numel() for m in bits.values())


def fix_masks(model: nn.Module) -> nn.Module:
    """Replace, in place, each score mask by the fixed mask it selects; pruned weights become zero."""
    current = masks(model)
    for layer in masked_layers(model).values():
        unmask(layer)
        layer.weight.requires_grad_(True)
        register(layer, FixedMask(current[layer.tensor("weight")].clone()))
    return model


def bake(model: nn.Module) -> nn.Module:
    """Make a plain copy of ``model`` whose weights are ``w * m``; without masks, a plain copy."""
    plain = copy.deepcopy(model)
    for layer in masked_layers(plain).values():
        unmask(layer)
    return plain
