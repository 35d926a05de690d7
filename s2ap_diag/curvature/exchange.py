"""Ascent from mask to mask within a ball of scores, by exchanging kept entries for dropped ones.

Under |v| <= rho c each score's magnitude can become anything from ``down = max(|s| - rho c, 0)`` to
``up = |s| + rho c``. A layer that keeps k of its scores therefore comes to keep a set K of k of them if, and
but for ties only if,

    (smallest ``up`` in K) > (largest ``down`` outside K).

A loss that sees scores through the mask alone has its maximum over the ball at one of these masks. Its gradient
in a mask's entries says, to first order, what each exchange would gain.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2ap_diag.curvature.ascent import Place

WINDOWS = 8  # of those that one layer's exchanges are chosen from; more hardly find more


class Reach:
    """The masks that the ball |u| <= rho reaches from scores s, u = v / c being the relative change.

    Args:
        scores: s, a vector [n] of all layers.
        c: their scale [n], |s| or 1.
        kept: boolean [n], the mask at u = 0.
        sizes: number of scores of each layer.
        rho: radius.

    Attributes:
        index: the entries [m] that some reachable mask flips; of no other entry can the mask change.
    """

    def __init__(self, scores: Tensor, c: Tensor, kept: Tensor, sizes: Sequence[int], rho: float) -> None:
        sign = torch.where(scores < 0, -1.0, 1.0).to(scores.dtype)
        away = rho * sign
        # Stops short of 0, where |s| has no derivative.
        towards = -sign * (0.999 * scores.abs() / c).nan_to_num(0.0).clamp_max(rho)
        up, down = (torch.addcmul(scores, c, u).abs() for u in (away, towards))  # in the rounding of the model
        self.layers: list[_LayerReach] = []
        indices = []
        start = 0
        for parts in zip(*(t.split(list(sizes)) for t in (scores.abs(), kept, up, down)), strict=True):
            layer, index = _LayerReach.of(*parts)
            if len(index):
                self.layers.append(layer)
                indices.append(index + start)
            start += len(parts[0])
        self.index = torch.cat(indices) if indices else torch.empty(0, dtype=torch.long, device=scores.device)
        self._away, self._towards = away[self.index], towards[self.index]
        # The derivative in |s| of a function of u.
        self._per_magnitude = (sign / c)[self.index]
        self._n = len(scores)

    def choice(self, kept: Tensor) -> np.ndarray:
        """Describe a reachable mask [n] by the entries that are open to choice, boolean [m]."""
        return kept[self.index].cpu().numpy()

    def point(self, choice: np.ndarray) -> Tensor:
        """Return the point u [n] of the ball where that mask is selected."""
        chosen = torch.from_numpy(choice).to(self.index.device)
        moved = torch.where(chosen, self._away, self._towards)
        return moved.new_zeros(self._n).index_copy_(0, self.index, moved)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the choice at a random corner of the ball."""
        return np.concatenate([layer.draw(rng) for layer in self.layers])

    def exchanged(self, choice: np.ndarray, gradient: Tensor, most: int, barred: np.ndarray) -> tuple[np.ndarray, int]:
        """Make the exchanges that gain most to first order, at most ``most``; return the choice then, and how many.

        Entries that are ``barred``, boolean [m], stay as they are.
        """
        gain = (gradient[self.index] * self._per_magnitude).cpu().numpy()
        rises, pairs, start = [], [], 0
        for layer in self.layers:
            part = slice(start, start + len(layer.up))
            rise, outs, ins = layer.exchanges(choice[part], gain[part], most, barred[part])
            rises.append(rise)
            pairs.append(np.stack([outs, ins]) + start)
            start = part.stop
        best = np.argsort(-np.concatenate(rises), kind="stable")[:most]
        outs, ins = np.concatenate(pairs, axis=1)[:, best]
        choice = choice.copy()
        choice[outs], choice[ins] = False, True
        return choice, len(best)


@dataclass(frozen=True, eq=False)
class _LayerReach:
    """The open entries of one layer, in descending order of |s|.

    A threshold in the place of the a-th's ``down`` leaves the a entries before it kept and lets any of those that
    follow, up to the ``end[a]``-th, take one of the other places: a window, all of whose choices are reachable.

    Attributes:
        up, down: [m].
        need: how many of them a mask keeps.
        end: [m], the number of entries whose ``up`` exceeds the a-th's ``down``.
    """

    up: np.ndarray
    down: np.ndarray
    need: int
    end: np.ndarray

    @classmethod
    def of(cls, magnitude: Tensor, kept: Tensor, up: Tensor, down: Tensor) -> tuple["_LayerReach", Tensor]:
        """Find a layer's open entries, and their positions [m] in it."""
        index = kept.new_empty(0, dtype=torch.long)
        if kept.any() and not kept.all():
            is_open = torch.where(kept, down < up[~kept].max(), up > down[kept].min())
            index = is_open.nonzero().squeeze(1)
        order = np.lexsort((~kept[index].cpu().numpy(), -magnitude[index].cpu().numpy()))  # kept before dropped
        index = index[torch.from_numpy(order).to(index.device)]
        up_, down_ = up[index].cpu().numpy(), down[index].cpu().numpy()
        return cls(up_, down_, int(kept[index].sum()), np.searchsorted(-up_, -down_)), index

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        magnitude = np.where(rng.random(len(self.up)) < 0.5, self.up, self.down)
        choice = np.zeros(len(self.up), dtype=bool)
        choice[np.argsort(-magnitude, kind="stable")[: self.need]] = True
        return choice

    def exchanges(
        self, choice: np.ndarray, gain: np.ndarray, most: int, barred: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """List exchanges of positive gain within one window: their gains, descending, what leaves, what enters."""
        first_out, last_in = int(np.argmin(choice)), len(choice) - 1 - int(np.argmax(choice[::-1]))
        lowest, highest = np.searchsorted(self.end, last_in, side="right"), min(first_out, self.need - 1)
        nothing = np.empty(0, dtype=int)
        best = (np.empty(0), nothing, nothing)
        if lowest > highest:  # of ties alone
            return best
        for a in np.unique(np.linspace(lowest, highest, WINDOWS).round().astype(int)):
            window = np.arange(a, self.end[a])
            window = window[~barred[window]]
            outs, ins = window[choice[window]], window[~choice[window]]
            count = min(most, len(outs), len(ins))
            outs = outs[np.argsort(gain[outs], kind="stable")[:count]]
            ins = ins[np.argsort(-gain[ins], kind="stable")[:count]]
            rise = gain[ins] - gain[outs]
            count = int((rise > 0).sum())
            if rise[:count].sum() > best[0].sum():
                best = rise[:count], outs[:count], ins[:count]
        return best


def exchange_ascent(
    place_above: Callable[[Tensor, float], Place | None],
    reach: Reach,
    start: Place,
    kept: Tensor,
    evaluations: int,
    rng: np.random.Generator,
) -> Place:
    """Maximise a function of the mask over the masks in reach; return the best place, ``start`` if there is no better.

    All exchanges that gain to first order are made at once; if the function does not rise, half of them, and so on
    down to a single one, then the next best single one; if it does, at most twice as many are made next. Where no
    exchange is left, the search goes on from a random corner of the ball, until ``evaluations`` points have been
    evaluated; where the ball reaches no other mask, none is.

    Args:
        place_above: ``place_above(u, bound)`` gives the place at u, or None if the function is not above ``bound``
            there, which saves its gradient.
        kept: boolean [n], the mask at ``start``.
    """
    best = here = start
    choice, most = reach.choice(kept), len(reach.index)
    failed = np.zeros(most, dtype=bool)
    for _ in range(evaluations if most else 0):
        proposal, count = reach.exchanged(choice, here.gradient, most, failed)
        bound = here.value
        if not count:
            proposal, bound = reach.draw(rng), -math.inf
        place = place_above(reach.point(proposal), bound)
        if place is None:
            if count == 1:
                failed |= proposal != choice
            most = max(count // 2, 1)
            continue
        here, choice, most = place, proposal, 2 * count or len(reach.index)
        failed[:] = False
        best = max(best, here, key=lambda place: place.value)
    return best
