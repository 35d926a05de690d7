"""What other tools call the tensors of a network; known without torch, for arrays too."""

import re
from collections.abc import Mapping
from typing import TypeVar

from s2ap_core.errors import InputError

T = TypeVar("T")

PREFIXES = ("module.basic_model.", "basic_model.", "module.")

_LAYER_TENSORS = ("weight", "weight_orig", "weight_mask", "popup_scores", "scores", "k_score")


_KIND = re.compile(r"(^|[.]|(?<=_proj)_)(weight|weight_mask|mask|scores|rate)$")
"""What a tensor is of a layer; torch's attention has several in one module, such as ``in_proj_weight``."""


def split_kind(name: str) -> tuple[str, str]:
    """Split a tensor's name before what it is of its layer, which is empty where the name does not say that.

    >>> split_kind("conv1.mask"), split_kind("attn.in_proj_weight_mask"), split_kind("conv1")
    (('conv1.', 'mask'), ('attn.in_proj_', 'weight_mask'), ('conv1', ''))
    """
    kind = _KIND.search(name)
    return (name, "") if kind is None else (name[: kind.start(2)], kind[2])


def without_prefix(raw: Mapping[str, T]) -> dict[str, T]:
    """Return the entries without the prefix that wrappers put before every name of the network.

    Raises:
        InputError: if only some layers carry it.
    """
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in raw)), "")
    bare = [key for key in raw if not key.startswith(prefix) and key.rpartition(".")[2] in _LAYER_TENSORS]
    if bare:
        raise InputError(f"some keys start with {prefix!r}, {bare[0]} does not; save one network's state dict")
    return {key.removeprefix(prefix): entry for key, entry in raw.items() if key.startswith(prefix)}
