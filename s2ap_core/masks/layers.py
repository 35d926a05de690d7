"""The only module that relies on torch's internals: parametrizations, their cache, their pickling, memory layouts.

A mask is a parametrization of a layer's ``weight``. Only this module knows what torch calls the parts of one, and what
its types leave unsaid of a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s2ap_core.masks.parametrization import FixedMask, Mask, ScoreMask

Layer = nn.Conv2d | nn.Linear
MASKABLE = (nn.Conv2d, nn.Linear)

RAW_WEIGHT = "parametrizations.weight.original"
"""What torch calls, within a masked layer, the weight behind the mask."""

MASK = "parametrizations.weight.0"
"""What it calls the mask."""

M = TypeVar("M", bound=nn.Module)


# --- register and remove ---


def register(layer: nn.Module, mask: Mask) -> nn.Module:
    """Mask one plain layer, in place, so that it computes with ``mask(weight)``; it can be pickled and deep-copied."""
    # unsafe=True skips torch's trial run of the parametrization, a selection per layer.
    parametrize.register_parametrization(layer, "weight", mask, unsafe=True)
    masked_class: Any = type(layer)  # torch has made it for this layer alone
    if "__deepcopy__" in vars(masked_class):
        del masked_class.__deepcopy__
    masked_class.__reduce_ex__ = _reduce_masked
    return layer


def _reduce_masked(layer: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle and deep-copy a masked layer as its plain layer and its mask, joined again.

    torch refuses to pickle a parametrized layer, and its deepcopy shares one class between the copies,
    so that removing the mask from one of them would break the other.
    """
    state = layer.__dict__.copy()
    state["_modules"] = {k: v for k, v in layer._modules.items() if k != "parametrizations"}
    state["_parameters"] = {**layer._parameters, "weight": raw_weight(layer)}
    return _restore_masked, (type(layer).__mro__[1], state, mask_of(layer))


def _restore_masked(cls: type[nn.Module], state: dict[str, Any], mask: Mask) -> nn.Module:
    layer = cls.__new__(cls)
    layer.__dict__.update(state)
    return register(layer, mask)


def unmask(layer: nn.Module) -> None:
    """Turn one masked layer, in place, into a plain one that holds ``w * m``."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


# --- find and read ---


def is_parametrized(layer: nn.Module) -> bool:
    """Return whether the layer's weight has a parametrization, a mask of ours or not."""
    return parametrize.is_parametrized(layer, "weight")


def is_masked(layer: nn.Module) -> TypeGuard[Layer]:
    """Return whether this layer itself carries a mask of ours."""
    return (
        isinstance(layer, MASKABLE)
        and is_parametrized(layer)
        and isinstance(layer.get_submodule(MASK), ScoreMask | FixedMask)
    )


def mask_of(layer: nn.Module) -> Mask:
    """Compute the mask of one masked layer."""
    mask = layer.get_submodule(MASK)
    assert isinstance(mask, ScoreMask | FixedMask)
    return mask


def raw_weight(layer: nn.Module) -> nn.Parameter:
    """Return the weight behind the mask of one masked layer."""
    return layer.get_parameter(RAW_WEIGHT)


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight [C_out, C_in, ...] that a Conv2d or Linear computes with, masked where it is masked."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def maskable_layers(model: nn.Module) -> dict[str, Layer]:
    """List every Conv2d and Linear by name, except those that the network declares in ``dense_layers``."""
    dense = getattr(model, "dense_layers", ())
    return {n: m for n, m in model.named_modules() if isinstance(m, MASKABLE) and n not in dense}


def masked_layers(model: nn.Module) -> dict[str, Mask]:
    """Collect the mask of every masked layer, by layer name, in the network's order."""
    return {name: mask_of(layer) for name, layer in model.named_modules() if is_masked(layer)}


def score_masks(model: nn.Module) -> dict[str, ScoreMask]:
    """List, as :func:`masked_layers` does, the masks that have scores."""
    return {name: mask for name, mask in masked_layers(model).items() if isinstance(mask, ScoreMask)}


# --- compute ---


@contextmanager
def one_mask(model: nn.Module) -> Iterator[None]:
    """Select every mask once for all forward passes in the block, which share one graph.

    Neither the scores nor the weights may change in the block, and only one backward pass is possible.
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


def constant_weights(model: nn.Module) -> list[Tensor]:
    """Return the masked weights that :func:`constant_mask` holds, of each masked layer in the network's order."""
    return [weight_of(layer) for layer in model.modules() if is_masked(layer)]


def to_channels_last(model: M) -> M:
    """Lay out, in place, all weights of four dimensions channels last, as convolutions are fastest."""
    # torch's stubs do not know this form of its own method.
    laid_out: M = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return laid_out
