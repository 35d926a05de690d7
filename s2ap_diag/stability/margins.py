"""How far scores are from flipping a mask entry."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from s2ap_core.errors import InputError
from s2ap_diag.curvature.hessian import chosen_masks
from s2ap_diag.curvature.landscape import Scale
from s2ap_diag.display.result import Result
from s2ap_diag.display.style import layer_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerMargin:
    """How many mask entries of one layer are in reach of a relative change of its scores.

    Attributes:
        entries: scores of the layer.
        threshold: midway between the smallest |s| kept and the largest dropped; None for a dense layer, and for one
            of several units, which have one each.
        within: entries whose |s| differs from the threshold by at most rho c.
        flippable: the most mask entries that any v with |v| <= rho c changes, see :func:`score_margins`.
    """

    entries: int
    threshold: float | None
    within: int
    flippable: int


@dataclass(frozen=True)
class ScoreMargins(Result):
    """Margins of all layers at one rho, and the shares of all entries that are in reach."""

    by: ClassVar[str] = "layer"

    rho: float
    layers: dict[str, LayerMargin]
    within: float
    flippable: float

    def details(self) -> dict[str, Any]:
        """Give of each layer its entries, its threshold, and how many entries are in reach."""
        margins = {name: asdict(margin) for name, margin in self.layers.items()}
        columns = ("entries", "threshold", "within", "flippable")
        return {column: {name: margin[column] for name, margin in margins.items()} for column in columns}

    def draw(self, axes: "Axes") -> None:
        """Draw the share of each layer's entries that can flip, the largest on top."""
        shares = {name: margin.flippable / margin.entries for name, margin in self.layers.items()}
        layer_bars(axes, shares, xlabel=f"entries that can flip / entries (ρ = {self.rho:g})")


def score_margins(model: nn.Module, rho: float, scale: Scale = "score") -> ScoreMargins:
    """Predict how many mask entries flip when each score changes by at most ``rho`` c, c = |s| or 1.

    A layer keeps its k scores of largest |s|. Under |v| <= rho c a score's magnitude can become
    anything from |s| - rho c, or 0, to |s| + rho c. The kept and the dropped that change places come in
    pairs; the m weakest kept and the m strongest dropped can all change places if and only if

        (m-th smallest |s| - rho c kept) < (m-th largest |s| + rho c dropped),

    and the layer's ``flippable`` is 2m for the largest such m. The ball of :func:`loss_differences` with
    the same c and the l-inf norm therefore never flips more, and v can be found that flips exactly as many;
    the l2 ball lies within it. ``within`` counts what the distance to a fixed threshold would suggest.

    Args:
        scale: c = |s| (``score``) or 1 (``one``).

    Raises:
        InputError: if rho is negative or not finite, the network has no scores, or they hold NaN.
    """
    if not (rho >= 0 and np.isfinite(rho)):
        raise InputError(f"rho = {rho}: give a finite radius of at least 0")
    layers = {}
    with torch.no_grad():
        for name, mask in chosen_masks(model).items():
            kept, magnitude = mask.mask().bool().cpu(), mask.scores.abs().cpu()
            parts = zip(mask.split(magnitude), mask.split(kept), strict=True)
            layers[name] = _joined([_part_margin(m.numpy(), k.numpy(), rho, scale) for m, k in parts])
    entries = sum(layer.entries for layer in layers.values())
    return ScoreMargins(
        rho,
        layers,
        within=sum(layer.within for layer in layers.values()) / entries,
        flippable=sum(layer.flippable for layer in layers.values()) / entries,
    )


def _joined(parts: Sequence[LayerMargin]) -> LayerMargin:
    """Add up the margins of the parts of a layer."""
    if len(parts) == 1:
        return parts[0]
    entries, within, flippable = (sum(getattr(part, f) for part in parts) for f in ("entries", "within", "flippable"))
    return LayerMargin(entries, None, within, flippable)


def _part_margin(magnitude: np.ndarray, mask: np.ndarray, rho: float, scale: str) -> LayerMargin:
    magnitude = magnitude.astype(np.float64)
    if mask.all() or not mask.any():
        return LayerMargin(magnitude.size, None, 0, 0)
    if scale == "score":
        down, up, room = magnitude * max(1 - rho, 0.0), magnitude * (1 + rho), rho * magnitude
    else:
        down, up, room = np.maximum(magnitude - rho, 0), magnitude + rho, np.full_like(magnitude, rho)
    threshold = float(magnitude[mask].min() + magnitude[~mask].max()) / 2
    within = int((np.abs(magnitude - threshold) <= room).sum())
    down, up = down[mask], up[~mask]
    # Only these can change places with anything at all, so only they need sorting.
    falling, rising = np.sort(down[down < up.max()]), np.sort(up[up > down.min()])[::-1]
    pairs = min(len(falling), len(rising))
    swaps = int((falling[:pairs] < rising[:pairs]).sum())
    return LayerMargin(magnitude.size, threshold, within, 2 * swaps)
