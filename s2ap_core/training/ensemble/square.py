"""Square Attack (Andriushchenko et al. 2020) on l-inf balls, several queries of an image in one pass."""

import math

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from s2ap_core.training.ensemble.rows import column

AHEAD = 256
"""Queries that an image is looked ahead, at most."""


class Square(SquareAttack):  # type: ignore[misc]  # the library is not typed
    """The library's queries in the library's order, each image at its own pace; in L2 and L1 the library's own.

    The queries do not depend on what becomes of them, so an image can try several in one pass: the first that lowers
    its margin counts, and those behind it are tried again from there. A query is not made where its outcome is known:
    it changes no pixel, or was made before from the same point.

    Attributes:
        at_once: rows of a pass.
    """

    at_once = 1

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """Attack images [B, C, H, W]; return nothing and where each has its lowest margin."""
        if self.norm != "Linf":
            whole: tuple[None, Tensor] = super().attack_single_run(x, y)
            return whole
        stripes = torch.rand(len(x), x.shape[1], 1, x.shape[3]).to(x.device)
        best = (x + self.eps * (2 * stripes - 1).sign()).clamp(0, 1)
        squares, signs, kind = self._queries(x)
        with torch.no_grad():
            margin = self.margin_and_loss(best, y)[0]
            _descend(self, x, y, best, margin, squares, signs, kind)
        return None, best

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw all queries: row, column and side [N, 3], sign of each channel [N, C], a number for equal ones [N]."""
        channels, height, width = x.shape[1:]
        draws = torch.rand(self.n_queries, 2 + channels)
        sides = [round(math.sqrt(self.p_selection(i) * height * width)) for i in range(self.n_queries)]
        side = torch.tensor(sides).clamp(1, min(height, width))
        corners = (draws[:, :2] * torch.stack([height - side, width - side], 1)).long()
        squares, signs = torch.cat([corners, side[:, None]], 1), (2 * draws[:, 2:] - 1).sign()
        kind = torch.unique(torch.cat([squares, signs.long()], 1), dim=0, return_inverse=True)[1]
        return squares.to(x.device), signs.to(x.device), kind.to(x.device)


def _descend(
    attack: Square, x: Tensor, y: Tensor, best: Tensor, margin: Tensor, squares: Tensor, signs: Tensor, kind: Tensor
) -> None:
    """Make the queries; lower ``margin`` [B] and move ``best`` in place."""
    total = len(squares)
    done = torch.zeros(len(x), dtype=torch.long, device=x.device)
    tried = torch.zeros(len(x), int(kind.max()) + 1, dtype=torch.bool, device=x.device)
    ahead = torch.arange(AHEAD, device=x.device)
    patience = 1.0  # queries from one that lowers the margin to the next
    while len(image := ((margin > 0) & (done < total)).nonzero().flatten()):
        queries = done[image, None] + ahead
        real, queries = queries < total, queries.clamp(max=total - 1)
        untried = real & ~tried[image[:, None], kind[queries]]
        several = max(1, min(attack.at_once // len(image), int(patience)))
        within = real & (untried.cumsum(1) <= several)
        row, place = (untried & within).nonzero(as_tuple=True)
        query = queries[row, place]
        lowered = torch.full(queries.shape, torch.inf, device=x.device)
        points = _changed(attack.eps, x[image[row]], best[image[row]], squares[query], signs[query])
        new = (points != best[image[row]]).flatten(1).any(1)
        if new.any():
            lowered[row[new], place[new]] = attack.margin_and_loss(points[new], y[image[row[new]]])[0]
        better = lowered < margin[image, None]
        hit, first = better.any(1), better.int().argmax(1)
        tried[image[row], kind[query]] = True
        tried[image[hit]] = False  # what failed from the old point may succeed from the new one
        taken = hit[row] & (place == first[row])
        best[image[row[taken]]] = points[taken]
        margin[image[hit]] = lowered[hit, first[hit]]
        done[image] += torch.where(hit, first + 1, within.sum(1))
        patience = 0.5 * patience + 0.5 * len(row) / max(1, int(hit.sum()))


def _changed(eps: float, x: Tensor, best: Tensor, squares: Tensor, signs: Tensor) -> Tensor:
    """Move a square of each point by 2 eps, up or down by channel, and back into the ball around ``x``."""
    height, width = x.shape[2:]
    top, left, side = (column(values, x) for values in squares.T)
    rows, columns = (torch.arange(n, device=x.device) for n in (height, width))
    inside = ((rows >= top) & (rows < top + side)).view(-1, 1, height, 1) & (
        (columns >= left) & (columns < left + side)
    ).view(-1, 1, 1, width)
    moved = best + 2.0 * eps * signs[:, :, None, None] * inside
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
