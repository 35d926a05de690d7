"""Mask stability with a memory, in the manner of torchmetrics: the masks come one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.masking import masks
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import look
from s2ap_diag.stability.distances import Hamming, hamming
from s2ap_diag.stability.packed import Masks, PackedMasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRUNED = "weight_mask"
"""What ``torch.nn.utils.prune`` calls the mask of a layer."""


@dataclass(frozen=True)
class Stability(Result):
    """How far a mask has moved: the distance of each but the first, in their order."""

    by: ClassVar[str] = "update"

    distances: tuple[Hamming, ...]

    def row(self) -> dict[str, Any]:
        """Give the last distance, and how many there are."""
        return {"updates": len(self.distances), **self.distances[-1].row()}

    def details(self) -> dict[str, Any]:
        """Give each distance, by its number from 1."""
        rows = {number: distance.row() for number, distance in enumerate(self.distances, 1)}
        return {name: {number: row[name] for number, row in rows.items()} for name in rows[1]}

    def draw(self, axes: "Axes") -> None:
        """Draw h of each mask."""
        axes.plot(range(1, len(self.distances) + 1), [d.h for d in self.distances], **look(0))  # type: ignore[arg-type]
        axes.set(xlabel="update", ylabel="h")
        axes.locator_params(axis="x", integer=True)


class StabilityMeter:
    """How far has the mask moved? Compares each mask that comes with the first one (Eq. 13), or the one before it.

    Args:
        against: ``first`` or ``previous``.

    >>> meter = StabilityMeter()
    >>> for kept in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]):
    ...     meter.update({"fc.weight": kept})
    >>> [distance.h for distance in meter.compute().distances]
    [0.5, 1.0]
    """

    def __init__(self, against: Literal["first", "previous"] = "first") -> None:
        if against not in ("first", "previous"):
            raise InputError(f"against = {against!r}: choose first or previous")
        self.against = against
        self._base: PackedMasks | None = None
        self._distances: list[Hamming] = []

    def update(self, of: "nn.Module | Masks") -> None:
        """Take the mask of a network as it is now, or masks of 0 and 1 by layer.

        Raises:
            InputError: if there is no mask, or one of another network than before.
        """
        given = masks_in(of) if isinstance(of, nn.Module) else of
        packed = given if isinstance(given, PackedMasks) else PackedMasks.from_masks(given)
        if self._base is None:
            self._base = packed
            return
        self._distances.append(hamming(self._base, packed))
        if self.against == "previous":
            self._base = packed

    def compute(self) -> Stability:
        """Give the distances so far.

        Raises:
            InputError: if fewer than two masks have come.
        """
        if not self._distances:
            raise InputError("StabilityMeter: fewer than two masks; update() before the search and after each epoch")
        return Stability(tuple(self._distances))

    def reset(self) -> None:
        """Forget all masks: the next one is the first."""
        self._base, self._distances = None, []

    def state_dict(self) -> dict[str, Any]:
        """Give what :meth:`load_state_dict` goes on from: plain values and tensors, as a checkpoint may hold them."""
        base = None
        if self._base is not None:
            base = {name: torch.from_numpy(mask) for name, mask in self._base.unpack().items()}
        return {"base": base, "distances": [vars(distance).copy() for distance in self._distances]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._base = None if state["base"] is None else PackedMasks.from_masks(state["base"])
        self._distances = [Hamming(**distance) for distance in state["distances"]]


def masks_in(model: nn.Module) -> dict[str, Tensor]:
    """Find the masks of any network, by weight name: ours, those of ``torch.nn.utils.prune``, else ``weight != 0``.

    Raises:
        InputError: if there is no layer that could have one.
    """
    if own := masks(model):
        return own
    suffix = f".{PRUNED}"
    if pruned := {n: b for n, b in model.named_buffers() if f".{n}".endswith(suffix)}:
        return {name.removesuffix("_mask"): buffer.bool() for name, buffer in pruned.items()}
    if not (layers := maskable_layers(model)):
        raise InputError("the network has no Conv2d or Linear layer that a mask could be of")
    return {f"{name}.weight".removeprefix("."): layer.weight != 0 for name, layer in layers.items()}
