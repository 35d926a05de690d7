"""Which layers of a network are masked, and which of them have a keep rate of their own.

A pattern names layers: it stands for every layer whose name, or the name of a module that holds it, it is, with ``*``
for any characters and ``?`` for one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.parametrization import LayerMask, Mask, ScoreMask, check_keep
from s2ap_core.masks.topk import n_dropped


def matches(layer: str, pattern: str) -> bool:
    """Return whether a pattern stands for the layer of this name.

    >>> [matches("layer4.0.conv1", pattern) for pattern in ("layer4", "layer?.*.conv1", "conv1")]
    [True, True, False]
    """
    return any(fnmatchcase(path, pattern) for path in accumulate(layer.split("."), "{}.{}".format))


def chosen_layers(
    model: nn.Module, *, only: Sequence[str] = (), skip: Sequence[str] = (), embeddings: bool = False
) -> dict[str, Layer]:
    """List the layers to mask by name: those of ``only``, or all where it is empty, without those of ``skip``.

    Args:
        only, skip: patterns.
        embeddings: whether embeddings are masked too.

    Raises:
        InputError: if a pattern stands for no layer, or no layer is left.
    """
    layers = maskable_layers(model, embeddings=embeddings)
    if not layers:
        raise InputError("the network has no layer that can be masked: none is linear or a convolution")
    for option, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            _check_matches(option, pattern, layers)
    chosen = {
        name: layer
        for name, layer in layers.items()
        if (not only or any(matches(name, p) for p in only)) and not any(matches(name, p) for p in skip)
    }
    if not chosen:
        raise InputError("only and skip leave no layer to mask; name fewer layers in skip")
    return chosen


def own_keep(layer: str, keep_layers: Mapping[str, float]) -> float | None:
    """Return the keep rate that a layer has of its own: that of the longest pattern for it; None where there is none.

    Raises:
        InputError: if two patterns of one length disagree.
    """
    found = {pattern: keep for pattern, keep in keep_layers.items() if matches(layer, pattern)}
    longest = max(map(len, found), default=0)
    best = [pattern for pattern in found if len(pattern) == longest]
    if len({found[pattern] for pattern in best}) > 1:
        raise InputError(f"keep_layers: {best[0]!r} and {best[1]!r} disagree on {layer}; name it by a longer pattern")
    return found[best[0]] if best else None


def own_keeps(layers: Iterable[str], keep_layers: Mapping[str, float]) -> dict[str, float]:
    """Return the keep rates of those layers that have one of their own.

    Raises:
        InputError: if a pattern stands for no layer or a keep rate is not in (0, 1].
    """
    layers = list(layers)
    for pattern, keep in keep_layers.items():
        _check_matches("keep_layers", pattern, layers)
        check_keep(keep)
    keeps = {name: own_keep(name, keep_layers) for name in layers}
    return {name: keep for name, keep in keeps.items() if keep is not None}


def with_own_keeps(make: Callable[[str, Layer], Mask], own: Mapping[str, float]) -> Callable[[str, Layer], Mask]:
    """Let ``make(name, layer)`` give layers that have a keep rate of their own a mask of it, with the same scores."""

    def made(name: str, layer: Layer) -> Mask:
        mask = make(name, layer)
        if name not in own:
            return mask
        assert isinstance(mask, ScoreMask)
        entries = mask.scores.numel()
        return LayerMask(mask.scores.detach(), (entries - n_dropped(entries, own[name])) / entries)

    return made


def _check_matches(option: str, pattern: str, layers: Iterable[str]) -> None:
    names = list(layers)
    if not any(matches(name, pattern) for name in names):
        some = ", ".join(names if len(names) <= 8 else [*names[:4], "...", *names[-3:]])
        raise InputError(f"{option}: {pattern!r} stands for no layer that can be masked; they are {some or '(root)'}")
