"""How each tool lays out a masked layer, and the weight and mask that its own forward pass makes of it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from s2ap_core.errors import InputError

HOW = {
    "torch-prune": "weight_orig under weight_mask",
    "flyingbird": "weight under weight_mask",
    "twinrep": "weight times aux_weight under mask",
    "mad": "weight times softplus(mask_weight), masks where the weight is not 0",
    "dense": "masks where the weight is not 0",
}
"""How the masks of each format without scores are read, in words."""

_MASKS = {"flyingbird": ("weight_mask", "mask"), "twinrep": ("mask",)}

_CONSUMED = {
    "flyingbird": ("weight_mask", "mask"),
    "twinrep": ("aux_weight", "mask"),
    "mad": ("mask_weight", "mask_bias"),
}
"""What becomes part of a weight, a bias or a mask."""


def layout_of(raw: Mapping[str, Tensor]) -> str | None:
    """Recognise the layout of a file whose masks are no scores, None where its tensors are plain."""
    kinds = {key.rpartition(".")[2] for key in raw}
    if any(key.endswith("weight_orig") for key in raw):
        return "torch-prune"
    if "aux_weight" in kinds:
        return "twinrep"
    if "mask_weight" in kinds:
        return "mad"
    masks = [key for key in raw if key.rpartition(".")[2] in _MASKS["flyingbird"]]
    return "flyingbird" if masks and all(_sibling(key, "weight") in raw for key in masks) else None


def unlaid(raw: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return the tensors under plain names: weights before their masks, and masks, ``conv1.mask``.

    Raises:
        InputError: if a part of a layer is missing, of another shape, or a mask is not of 0 and 1.
    """
    plain = {key: tensor for key, tensor in raw.items() if key.rpartition(".")[2] not in _CONSUMED[layout]}
    joins = layout == "twinrep" and _joins_channels(raw)
    for key in raw:
        part = key.rpartition(".")[2]
        weight = _sibling(key, "weight")
        if part not in _CONSUMED[layout] or part == "mask_bias":
            continue
        if weight not in raw:
            raise InputError(f"has {key} but no {weight}; save the whole state dict")
        if layout == "mad":
            plain |= _softplus(raw, weight)
        elif part == "aux_weight":
            plain[weight] = _product(raw[weight], raw[key], key, joins)
        mask = raw[weight] != 0 if layout == "mad" else _mask(raw, weight, layout)
        if raw[weight].ndim >= 2:
            plain[_sibling(key, "mask")] = mask
        else:
            plain[weight] = plain[weight] * mask
    return plain


def _sibling(key: str, part: str) -> str:
    layer, dot, _ = key.rpartition(".")
    return f"{layer}{dot}{part}"


def _mask(raw: Mapping[str, Tensor], weight: str, layout: str) -> Tensor:
    names = [_sibling(weight, part) for part in _MASKS[layout]]
    name = next((name for name in names if name in raw), None)
    if name is None:
        raise InputError(f"has {weight} but no {names[0]}; save the whole state dict")
    mask = raw[name]
    if mask.shape != raw[weight].shape or not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"{name} is not a mask of 0 and 1 of the shape of {weight}; save it again")
    return mask.bool()


def _joins_channels(raw: Mapping[str, Tensor]) -> bool:
    """Return whether TwinRep's second weights join output channels, as for filter pruning, in some layer at least."""
    aux = [key for key in raw if key.endswith("aux_weight")]
    return any(raw[key].ndim == 2 and getattr(raw.get(_sibling(key, "weight")), "ndim", 2) == 4 for key in aux)


def _product(weight: Tensor, aux: Tensor, name: str, joins: bool) -> Tensor:
    if joins and aux.shape == (len(weight), len(weight)):
        return torch.einsum("pq,q...->p...", aux, weight)
    if not joins and aux.shape == weight.shape:
        return weight * aux
    raise InputError(f"{name} has shape {list(aux.shape)}, which does not go with its weight's; save it again")


def _softplus(raw: Mapping[str, Tensor], weight: str) -> dict[str, Tensor]:
    """Apply MAD's soft masks to weight and bias."""
    found = {}
    for part in ("weight", "bias"):
        name, soft = _sibling(weight, part), _sibling(weight, f"mask_{part}")
        if soft in raw and name in raw:
            if raw[soft].shape != raw[name].shape or not raw[soft].is_floating_point():
                raise InputError(f"{soft} is not of the shape of {name}, or no real numbers; save it again")
            found[name] = raw[name] * F.softplus(raw[soft])
    return found
