"""Hamming distances between masks on packed bits (Eq. 13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from s2ap_core.errors import InputError
from s2ap_core.files.packed import PackedMask
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import layer_bars
from s2ap_diag.stability.packed import Masks, PackedMasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Hamming(Result):
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

    by: ClassVar[str] = "layer"

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

    def draw(self, axes: "Axes") -> None:
        """Draw h of each layer, the largest on top."""
        layer_bars(axes, self.layers, xlabel=f"differing entries / entries of the layer (h = {self.h:.4g})")


def hamming(a: Masks, b: Masks) -> Hamming:
    """Compute the Hamming distance between two masks of one network (Eq. 13).

    Layers are matched by name; where all names of the one have a prefix before those of the other, without it.

    Raises:
        InputError: if the two are not masks of one network, naming the first layer that differs.
    """
    mine = _packed(a)
    first, second = mine.layers, _packed(b).named_as(mine).layers
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
    """Compute the distance of every mask but the first, from the first (Eq. 13) or from the one before it.

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
