"""Find the one state dict in what a file holds: alone, or under the key that its writer chose."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.foreign.pickles import is_plain

KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "weights")
"""Under which of them a state dict lies, whatever else the file holds."""

DEEPEST = 3
"""Envelopes within envelopes that are opened, as the ``module`` within the ``ema`` of some trainers."""


def state_dict_of(content: object) -> tuple[dict[str, Tensor], str]:
    """Find the named tensors and say under which key they lie, in words.

    Raises:
        InputError: if there are none, or two state dicts.
    """
    where: list[str] = []
    while isinstance(content, Mapping) and len(where) < DEEPEST:
        known = [key for key in KEYS if isinstance(content.get(key), Mapping)]
        held = [key for key in known if any(_states(content[key]))] or known[:1]
        if not held and not any(_tensors(content)):
            held = [key for key, value in content.items() if isinstance(key, str) and any(_tensors(value))]
        if len(held) > 1:
            raise InputError(f"holds two networks, under {held[0]} and {held[1]}; save the one that you mean alone")
        if not held:
            break
        if second := next((k for k in content if k != held[0] and _alike(content[held[0]], content[k])), None):
            raise InputError(f"holds two networks, under {held[0]} and {second}; save the one that you mean alone")
        where.append(held[0])
        content = content[held[0]]
    found = dict(_tensors(content))
    if not found:
        raise InputError("holds no state dict; give a file with named tensors")
    return found, f"tensors under {'.'.join(where)}" if where else "tensors"


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Mapping):
        yield from ((key, t) for key, t in content.items() if isinstance(key, str) and isinstance(t, Tensor))


def _states(content: Any, depth: int = 0) -> Iterator[object]:
    """Go through the tensors of an envelope and of those within it."""
    yield from _tensors(content)
    if depth < DEEPEST:
        for key in KEYS:
            if isinstance(content.get(key), Mapping):
                yield from _states(content[key], depth + 1)


def _alike(first: object, second: object) -> bool:
    """Return whether two envelopes hold networks of the same layers whose weights differ; masks of 0 and 1 are none."""
    layers, others = ({name: t for name, t in _tensors(held) if t.ndim > 1 and is_plain(t)} for held in (first, second))
    if not layers or {n: t.shape for n, t in layers.items()} != {n: t.shape for n, t in others.items()}:
        return False
    marks = all(bool(((t == 0) | (t == 1)).all()) for t in others.values())
    return not marks and any(bool((layers[name] != others[name]).any()) for name in layers)


def two_networks(first: str, second: str) -> InputError:
    """Make the refusal of a state dict of two networks whose names begin differently; one's may have no prefix."""
    bare, prefixed = sorted((first, second))
    how = f"their names begin with {first} and {second}" if bare else f"the names of one begin with {prefixed}"
    return InputError(f"holds two networks, {how}; save the one that you mean alone")


def check_one_network(tensors: Mapping[str, Tensor]) -> None:
    """Refuse a state dict of two networks of one kind, side by side.

    Raises:
        InputError: if all layers lie under two or more names that hold the same layers of the same shapes, or those
            under one name are the others again.
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tuple(tensor.shape)
    kinds = list(parts.values())
    if len(kinds) > 1 and len(kinds[0]) > 1 and all(kind == kinds[0] for kind in kinds):
        first, second, *_ = parts
        raise two_networks(f"{first}.", f"{second}.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.ndim > 1}
    for part, inside in parts.items():
        outside = {name: shape for name, shape in shapes.items() if not name.startswith(f"{part}.")}
        if len(inside) > 1 and inside == outside:
            raise two_networks("", f"{part}.")
