"""The one seam to torch's parametrizations: register and remove masks, pickle, cache, find the masked layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from s2ap_core.masks.parametrization import FixedMask, Mask, ScoreMask

MASKABLE = (nn.Conv2d, nn.Linear)


def _restore_masked(cls: type[nn.Module], state: dict[str, Any], mask: Mask) -> nn.Module:
    module = cls.__new__(cls)
    module.__dict__.update(state)
    return _register(module, mask)


def _reduce_masked(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    """How a masked layer is pickled and deep-copied: as its plain layer and its mask, joined again.

    torch refuses to pickle a parametrized layer, and its deepcopy shares one class between the copies,
    so that removing the mask from one of them would break the other.
    """
    state = module.__dict__.copy()
    state["_modules"] = {k: v for k, v in module._modules.items() if k != "parametrizations"}
    state["_parameters"] = {**module._parameters, "weight": module.parametrizations.weight.original}  # type: ignore[union-attr]
    return _restore_masked, (type(module).__mro__[1], state, mask_of(module))


def _register(layer: nn.Module, mask: Mask) -> nn.Module:
    # unsafe=True skips torch's trial run of the parametrization, a selection per layer.
    parametrize.register_parametrization(layer, "weight", mask, unsafe=True)
    if "__deepcopy__" in vars(type(layer)):
        del type(layer).__deepcopy__  # type: ignore[attr-defined]
    type(layer).__reduce_ex__ = _reduce_masked  # type: ignore[assignment, method-assign]
    return layer


def mask_of(layer: nn.Module) -> Mask:
    """The mask of one masked layer."""
    mask: Mask = layer.parametrizations.weight[0]  # type: ignore[union-attr, index, assignment]
    return mask


def is_masked(layer: nn.Module) -> bool:
    """Whether this layer itself carries a mask of ours."""
    return (
        isinstance(layer, MASKABLE)
        and parametrize.is_parametrized(layer, "weight")
        and isinstance(mask_of(layer), ScoreMask | FixedMask)
    )


def maskable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every Conv2d and Linear by name, except those that the network declares in ``dense_layers``."""
    dense = getattr(model, "dense_layers", ())
    return {n: m for n, m in model.named_modules() if isinstance(m, MASKABLE) and n not in dense}


def masked_layers(model: nn.Module) -> dict[str, Mask]:
    """The mask of every masked layer, by layer name, in the network's order."""
    return {name: mask_of(layer) for name, layer in model.named_modules() if is_masked(layer)}


def score_masks(model: nn.Module) -> dict[str, ScoreMask]:
    """As :func:`masked_layers`, those with scores alone."""
    return {name: mask for name, mask in masked_layers(model).items() if isinstance(mask, ScoreMask)}


@contextmanager
def one_mask(model: nn.Module) -> Iterator[None]:
    """Select every mask once for all forward passes in the block, which share one graph.

    Neither the scores nor the weights may change in the block, and it takes one backward pass.
    """
    del model  # torch keeps one cache for all parametrized modules
    with parametrize.cached():
        yield


@contextmanager
def constant_mask(model: nn.Module) -> Iterator[None]:
    """Select every mask once and hold the masked weights as constants: for attacks and evaluation.

    Nothing in the block is differentiable in scores or masked weights; inputs are.
    """
    with parametrize.cached():
        with torch.no_grad():
            for layer in model.modules():
                if is_masked(layer):
                    _ = layer.weight  # fills the cache
        yield


def unmask(layer: nn.Module) -> None:
    """Turn one masked layer, in place, into a plain one that holds ``w * m``."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
