"""What the members share: how many rows a pass takes, and the classes that are attacked at once."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

NORMS = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}
"""The orders of the norms, as torch names them."""


def rounds(targets: int, standing: Tensor, at_once: int) -> Iterator[range]:
    """Yield the ranks of the target classes, as many at once as fit a pass with all the images that are left.

    Args:
        targets: number of classes to aim at: rank 0 is the likeliest wrong one.
        standing: which images no class has felled yet; read before each round, so change it in place.
        at_once: rows of a pass.
    """
    first = 0
    while first < targets and (left := int(standing.sum())):
        some = range(first, min(targets, first + max(1, at_once // left)))
        yield some
        first = some.stop


def wrong_classes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return which images are classified correctly [B], and the classes but the first, likeliest first [B, C - 1]."""
    with torch.no_grad():
        logits = model(x)
    return logits.argmax(1) == y, logits.argsort(1).flip(1)[:, 1:]


def column(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value for each row, so that it multiplies that row of ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))
