"""How far scores are from flipping a mask entry."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from s2ap_core.errors import InputError
from s2ap_diag.curvature.hessian import chosen_masks


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
