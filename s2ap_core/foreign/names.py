"""What other tools call the tensors of a network; known without torch, for arrays too."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from s2ap_core.errors import InputError

T = TypeVar("T")

PREFIXES = ("module.basic_model.", "basic_model.", "module.")
"""What wrappers put before every name; a file where only some layers carry one is refused."""

WRAPPERS = ("module.", "basic_model.", "model.", "net.", "network.", "ema.", "_orig_mod.")
"""What may stand before every name; a network may also have a part of such a name, so that all layers must carry it."""

DEEPEST = 4
"""Wrappers around wrappers that are looked through."""

LAYER_TENSORS = ("weight_orig", "popup_scores", "k_score", "mask_weight", "aux_weight")
"""What other tools call tensors of a layer, besides those that :func:`split_kind` knows."""


_KIND = re.compile(r"(^|[.]|(?<=_proj)_)(weight|weight_mask|mask|scores|rate)$")
"""What a tensor is of a layer; torch's attention has several in one module, such as ``in_proj_weight``."""


def split_kind(name: str) -> tuple[str, str]:
    """Split a tensor's name before what it is of its layer, which is empty where the name does not say that.

    >>> split_kind("conv1.mask"), split_kind("attn.in_proj_weight_mask"), split_kind("conv1")
    (('conv1.', 'mask'), ('attn.in_proj_', 'weight_mask'), ('conv1', ''))
    """
    kind = _KIND.search(name)
    return (name, "") if kind is None else (name[: kind.start(2)], kind[2])


def prefix_of(names: Iterable[str]) -> str:
    """Find what wrappers put before every name of a network, "" where nothing.

    Raises:
        InputError: if only some layers carry one of :data:`PREFIXES`.

    >>> prefix_of(["module.model.conv1.weight", "module.model.fc.weight"])
    'module.model.'
    """
    given = list(names)
    layers = [name for name in given if split_kind(name)[1] or name.rpartition(".")[2] in LAYER_TENSORS]
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in given)), "")
    bare = [name for name in layers if not name.startswith(prefix)]
    if bare:
        raise InputError(f"some keys start with {prefix!r}, {bare[0]} does not; save one network's state dict")
    for _ in range(DEEPEST):
        found = (prefix + w for w in WRAPPERS if all(name.startswith(prefix + w) for name in layers or given))
        deeper = next(found, prefix)
        if not given or deeper == prefix:
            break
        prefix = deeper
    return prefix


def without_prefix(raw: Mapping[str, T]) -> dict[str, T]:
    """Return the entries without the prefix that wrappers put before every name of the network.

    Raises:
        InputError: if only some layers carry it.
    """
    prefix = prefix_of(raw)
    return {key.removeprefix(prefix): entry for key, entry in raw.items() if key.startswith(prefix)}


def prefix_between(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Find the prefix that ``names`` have before those of ``wanted``, None where it is not one for most of them.

    >>> prefix_between(["net.a.weight", "net.b.weight"], ["a.weight", "b.weight"])
    'net.'
    """
    return next(iter(prefixes_between(names, wanted)), None)


def prefixes_between(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Find the prefixes that ``names`` have before most of ``wanted``, the one of most first; no name counts for two.

    >>> prefixes_between(["a.w", "b.w", "ema.a.w", "ema.b.w"], ["a.w", "b.w"])
    ['', 'ema.']
    """
    given, target = set(names), list(wanted)
    if not target:
        return []
    ends = [f".{name}" for name in (target[0], target[-1])]
    prefixes = {name.removesuffix(end[1:]) for end in ends for name in given if name.endswith(end)} | {""}
    found: list[str] = []
    while prefixes:
        matches = {prefix: sum(prefix + name in given for name in target) for prefix in sorted(prefixes)}
        best = max(matches, key=lambda prefix: matches[prefix])
        if 2 * matches[best] <= len(target):
            break
        found.append(best)
        prefixes.remove(best)
        given -= {best + name for name in target}
    return found
