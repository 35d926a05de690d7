"""The only module that relies on torch's internals: parametrizations, their cache, their pickling, memory layouts.

A mask is a parametrization of a layer's weight. Only this module knows what torch calls the parts of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s2ap_core.masks.kinds import Layer, parameters_of
from s2ap_core.masks.parametrization import FixedMask, Mask, ScoreMask

RAW = "parametrizations.{}.original"
"""What torch calls, within a module, the parameter of that name behind its mask."""

MASK = "parametrizations.{}.0"
"""What it calls the mask."""

M = TypeVar("M", bound=nn.Module)


# --- register and remove ---


def register(layer: Layer, mask: Mask) -> None:
    """Mask one plain layer, in place: it computes with ``mask(weight)``; its module can be pickled and deep-copied."""
    module = layer.module
    # unsafe=True skips torch's trial run of the parametrization, a selection per layer.
    parametrize.register_parametrization(module, layer.parameter, mask, unsafe=True)
    masked_class: Any = type(module)  # torch has made it for this module alone
    if "__deepcopy__" in vars(masked_class):
        del masked_class.__deepcopy__
    masked_class.__reduce_ex__ = _reduce_masked


def _reduce_masked(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle and deep-copy a module with masked layers as the plain module and its masks, joined again.

    torch refuses to pickle a parametrized module, and its deepcopy shares one class between the copies,
    so that removing the mask from one of them would break the other.
    """
    layers = [layer for layer in _layers_of("", module) if is_masked(layer)]
    state = module.__dict__.copy()
    state["_modules"] = {k: v for k, v in module._modules.items() if k != "parametrizations"}
    state["_parameters"] = {**module._parameters, **{layer.parameter: raw_weight(layer) for layer in layers}}
    return _restore_masked, (type(module).__mro__[1], state, {layer.parameter: mask_of(layer) for layer in layers})


def _restore_masked(cls: type[nn.Module], state: dict[str, Any], masks: dict[str, Mask]) -> nn.Module:
    module = cls.__new__(cls)
    module.__dict__.update(state)
    for parameter, mask in masks.items():
        register(Layer("", module, parameter), mask)
    return module


def unmask(layer: Layer) -> None:
    """Turn one masked layer, in place, into a plain one that holds ``w * m``."""
    parametrize.remove_parametrizations(layer.module, layer.parameter, leave_parametrized=True)


# --- find and read ---


def is_parametrized(layer: Layer) -> bool:
    """Return whether the layer's weight has a parametrization, a mask of ours or not."""
    return parametrize.is_parametrized(layer.module, layer.parameter)


def has_parametrization(module: nn.Module) -> bool:
    """Return whether any parameter of the module itself has a parametrization."""
    return parametrize.is_parametrized(module)


def class_before_masks(module: nn.Module) -> type[nn.Module]:
    """Return the class that the module had before any of its parameters was masked."""
    return parametrize.type_before_parametrizations(module)


def has_forward_hooks(model: nn.Module) -> bool:
    """Return whether the model or any module in it has a hook on its forward pass."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def is_masked(layer: Layer) -> bool:
    """Return whether this layer carries a mask of ours."""
    return is_parametrized(layer) and isinstance(_first_parametrization(layer), ScoreMask | FixedMask)


def mask_of(layer: Layer) -> Mask:
    """Return the mask of one masked layer."""
    mask = _first_parametrization(layer)
    assert isinstance(mask, ScoreMask | FixedMask)
    return mask


def _first_parametrization(layer: Layer) -> nn.Module:
    return layer.module.get_submodule(MASK.format(layer.parameter))


def raw_weight(layer: Layer) -> nn.Parameter:
    """Return the weight behind the mask of one masked layer."""
    return layer.module.get_parameter(RAW.format(layer.parameter))


def _layers_of(path: str, module: nn.Module) -> Iterator[Layer]:
    """List the layers that a module itself makes up, those of its children apart."""
    return (Layer(path, module, parameter) for parameter in parameters_of(module))


def every_layer(model: nn.Module) -> Iterator[Layer]:
    """List, in the network's order, whatever could be masked."""
    return (layer for path, module in model.named_modules() for layer in _layers_of(path, module))


def maskable_layers(model: nn.Module, *, embeddings: bool = False) -> dict[str, Layer]:
    """List each layer that can be masked by name, except those that the network declares in ``dense_layers``.

    Args:
        embeddings: whether embeddings, which are masked on request alone, are listed too.
    """
    dense = getattr(model, "dense_layers", ())
    listed = (layer for layer in every_layer(model) if embeddings or not isinstance(layer.module, nn.Embedding))
    return {layer.name: layer for layer in listed if layer.name not in dense}


def masked_layers(model: nn.Module) -> dict[str, Layer]:
    """List each masked layer by name, in the network's order."""
    return {layer.name: layer for layer in every_layer(model) if is_masked(layer)}


def dense_weights(model: nn.Module) -> dict[str, int]:
    """Count the entries of each parameter of two or more dimensions that no mask of ours is on, by its name."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    return {name: size for name, size in sizes.items() if "parametrizations" not in name.split(".")}


def layer_masks(model: nn.Module) -> dict[str, Mask]:
    """Collect the mask of each masked layer, as :func:`masked_layers` lists them."""
    return {name: mask_of(layer) for name, layer in masked_layers(model).items()}


def score_masks(model: nn.Module) -> dict[str, ScoreMask]:
    """List, as :func:`layer_masks` does, the masks that have scores."""
    return {name: mask for name, mask in layer_masks(model).items() if isinstance(mask, ScoreMask)}


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
            for layer in masked_layers(model).values():
                _ = layer.weight  # fills the cache
        yield


def constant_weights(model: nn.Module) -> list[Tensor]:
    """Return the masked weights that :func:`constant_mask` holds, of each masked layer in the network's order."""
    return [layer.weight for layer in masked_layers(model).values()]


def to_channels_last(model: M) -> M:
    """Lay out, in place, all weights of four dimensions channels last, as convolutions are fastest."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model
