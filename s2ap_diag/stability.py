"""Mask stability: Hamming distances on packed bits (Eq. 13), and how far scores are from flipping.

Masks are mappings from a layer's weight name to a binary array or tensor of any shape, as
:func:`s2ap_core.masks.masking.masks` gives them, or the same packed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.files.packed import PackedMask
from s2ap_diag.curvature.hessian import chosen_masks


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """The masks of a network by weight name, packed once so that comparing them is cheap.

    >>> PackedMasks.from_masks({"fc.weight": np.array([[1, 0, 1]])}).layers["fc.weight"].kept
    2
    """

    layers: dict[str, PackedMask]

    @classmethod
    def from_masks(cls, masks: Mapping[str, Tensor | np.ndarray]) -> "PackedMasks":
        """Pack boolean masks, or numbers that are all 0 or 1.

        Raises:
            InputError: naming the first mask that holds another value.
        """
        return cls({name: _pack(name, mask) for name, mask in masks.items()})

    def unpack(self) -> dict[str, np.ndarray]:
        """The boolean masks."""
        return {name: mask.unpack() for name, mask in self.layers.items()}


Masks = PackedMasks | Mapping[str, Tensor] | Mapping[str, np.ndarray]


def _pack(name: str, mask: Tensor | np.ndarray) -> PackedMask:
    values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise InputError(f"{name}: not a mask, it holds values other than 0 and 1")
    return PackedMask.from_bytes(np.packbits(values.astype(bool, copy=False)), values.shape)


@dataclass(frozen=True)
class Hamming:
    """How two masks of one network, a and b, differ; fractions lie in [0, 1].

    Raw h shrinks with sparsity: two random masks of density d differ in 2d(1 - d) of the entries, and
    no two masks of density d <= 1/2 in more than 2d. The ratios to these are comparable across
    sparsities; they are None where the layers are all dense or all empty and nothing could differ.

    Attributes:
        h: differing entries over all entries (Eq. 13).
        h_per_kept: differing entries over those kept in a; None if a keeps none.
        flipped, entries: the two counts.
        kept, kept_other: entries kept in a and in b.
        chance: expected h of random masks with each layer's two densities, d_a + d_b - 2 d_a d_b per layer.
        ceiling: largest h that each layer's two densities allow, min(d_a + d_b, 2 - d_a - d_b) per layer.
        iou: entries kept in both over entries kept in either; 1 for two empty masks.
        layers: h of each layer.
    """

    h: float
    h_per_kept: float | None
    flipped: int
    entries: int
    kept: int
    kept_other: int
    chance: float
    h_over_chance: float | None
    ceiling: float
    h_over_ceiling: float | None
    iou: float
    layers: dict[str, float]


def hamming(a: Masks, b: Masks) -> Hamming:
    """Hamming distance between two masks of one network (Eq. 13).

    Raises:
        InputError: if the two are not masks of one network, naming the first layer that differs.
    """
    first, second = _packed(a).layers, _packed(b).layers
    _check_same_network(first, second)
    flipped = {
        name: int(np.bitwise_count(mask.words ^ second[name].words).sum(dtype=np.int64)) for name, mask in first.items()
    }
    entries = {name: mask.entries for name, mask in first.items()}
    chance = ceiling = 0.0  # both in entries
    for name, n in entries.items():
        kept_a, kept_b = first[name].kept, second[name].kept
        chance += kept_a + kept_b - 2 * kept_a * kept_b / n
        ceiling += min(kept_a + kept_b, 2 * n - kept_a - kept_b)
    total, changed = sum(entries.values()), sum(flipped.values())
    kept = sum(mask.kept for mask in first.values())
    kept_other = sum(mask.kept for mask in second.values())
    in_either = (kept + kept_other + changed) // 2
    return Hamming(
        h=changed / total,
        h_per_kept=changed / kept if kept else None,
        flipped=changed,
        entries=total,
        kept=kept,
        kept_other=kept_other,
        chance=chance / total,
        h_over_chance=changed / chance if chance else None,
        ceiling=ceiling / total,
        h_over_ceiling=changed / ceiling if ceiling else None,
        iou=(in_either - changed) / in_either if in_either else 1.0,
        layers={name: count / entries[name] for name, count in flipped.items()},
    )


def trajectory(masks: Sequence[Masks], *, against: Literal["first", "previous"] = "first") -> list[Hamming]:
    """The distance of every mask but the first, from the first (Eq. 13) or from the one before it.

    Raises:
        InputError: as :func:`hamming`.
    """
    packed = [_packed(mask) for mask in masks]
    bases = packed[:1] * len(packed) if against == "first" else packed
    return [hamming(base, mask) for base, mask in zip(bases, packed[1:], strict=False)]


def _packed(masks: Masks) -> PackedMasks:
    return masks if isinstance(masks, PackedMasks) else PackedMasks.from_masks(masks)


def _check_same_network(first: Mapping[str, PackedMask], second: Mapping[str, PackedMask]) -> None:
    if not first or not second:
        raise InputError("no masks to compare: one of the two has no layer")
    if empty := [name for name, mask in first.items() if not mask.entries]:
        raise InputError(f"no mask to compare: {empty[0]} has no entries")
    alone = [name for name in [*first, *second] if (name in first) != (name in second)]
    if alone:
        which = "first" if alone[0] in first else "second"
        raise InputError(f"masks of two different networks: only the {which} has {alone[0]}")
    for name, mask in first.items():
        if mask.shape != second[name].shape:
            raise InputError(
                f"masks of two different networks: {name} is {list(mask.shape)} in the first, "
                f"{list(second[name].shape)} in the second"
            )


@dataclass(frozen=True)
class LayerMargin:
    """How many mask entries of one layer are in reach of a relative change of its scores.

    Attributes:
        entries: scores of the layer.
        threshold: midway between the smallest |s| kept and the largest dropped; None for a dense layer.
        within: entries whose |s| differs from the threshold by at most rho |s|.
        flippable: the most mask entries that any v with |v| <= rho |s| changes, see :func:`score_margins`.
    """

    entries: int
    threshold: float | None
    within: int
    flippable: int


@dataclass(frozen=True)
class ScoreMargins:
    """Margins of all layers at one rho, and the shares of all entries that are in reach."""

    rho: float
    layers: dict[str, LayerMargin]
    within: float
    flippable: float


def score_margins(model: nn.Module, rho: float) -> ScoreMargins:
    """Predict how many mask entries flip when scores change by at most ``rho`` relative to themselves.

    A layer keeps its k scores of largest |s|. Under |v| <= rho |s| a score's magnitude can become
    anything from |s|(1 - rho), or 0, to |s|(1 + rho). The kept and the dropped that change places come in
    pairs; the m weakest kept and the m strongest dropped can all change places if and only if

        (m-th smallest |s| kept)(1 - rho) < (m-th largest |s| dropped)(1 + rho),

    and the layer's ``flippable`` is 2m for the largest such m. The ball of :func:`loss_difference` with
    c = |s| and the l-inf norm therefore never flips more, and v can be found that flips exactly as many.
    ``within`` counts what the distance to a fixed threshold would suggest.

    Raises:
        InputError: if rho is negative or not finite, the network has no scores, or they hold NaN.
    """
    if not (rho >= 0 and np.isfinite(rho)):
        raise InputError(f"rho = {rho}: give a finite radius of at least 0")
    layers = {}
    with torch.no_grad():
        for name, mask in chosen_masks(model).items():
            kept = mask.mask().bool().cpu().numpy()
            layers[name] = _layer_margin(mask.scores.abs().cpu().numpy(), kept, rho)
    entries = sum(layer.entries for layer in layers.values())
    return ScoreMargins(
        rho,
        layers,
        within=sum(layer.within for layer in layers.values()) / entries,
        flippable=sum(layer.flippable for layer in layers.values()) / entries,
    )


def _layer_margin(magnitude: np.ndarray, mask: np.ndarray, rho: float) -> LayerMargin:
    magnitude = magnitude.astype(np.float64)
    kept, dropped = magnitude[mask], magnitude[~mask]
    if not len(kept) or not len(dropped):
        return LayerMargin(magnitude.size, None, 0, 0)
    weakest, strongest = kept.min(), dropped.max()
    threshold = float(weakest + strongest) / 2
    within = int((np.abs(magnitude - threshold) <= rho * magnitude).sum())
    # Only these can change places with anything at all, so only they need sorting.
    down, up = max(1 - rho, 0.0), 1 + rho
    falling = np.sort(kept[kept * down < strongest * up])
    rising = np.sort(dropped[dropped * up > weakest * down])[::-1]
    pairs = min(len(falling), len(rising))
    swaps = int((falling[:pairs] * down < rising[:pairs] * up).sum())
    return LayerMargin(magnitude.size, threshold, within, 2 * swaps)
