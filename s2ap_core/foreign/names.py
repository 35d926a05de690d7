"""What other tools call the tensors of a network; known without torch, for arrays too."""

from collections.abc import Mapping
from typing import TypeVar

from s2ap_core.errors import InputError

T = TypeVar("T")

PREFIXES = ("module.basic_model.", "basic_model.", "module.")

_LAYER_TENSORS = ("weight", "weight_orig", "weight_mask", "popup_scores", "scores", "k_score")


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
