"""How far values that rest on batches of several sizes spread, and their mean."""

import math
from collections.abc import Sequence

import numpy as np


def standard_deviation(values: Sequence[float], counts: Sequence[int] | None = None) -> float | None:
    """Sample standard deviation of B values, ``sqrt(B / (B - 1) sum w (x - mean)^2)``; None of fewer than two.

    Args:
        counts: samples behind each value, whose share w is its weight; all alike by default.
    """
    return _deviation(values, counts, power=1)


def standard_error(values: Sequence[float], counts: Sequence[int] | None = None) -> float | None:
    """Compute the standard error of the mean of B values, ``sqrt(B / (B - 1) sum w^2 (x - mean)^2)``; None of B < 2.

    With weights that is the ratio estimator's (Cochran 1977), without the deviation over the root of B.

    Args:
        counts: as for :func:`standard_deviation`.
    """
    return _deviation(values, counts, power=2)


def _deviation(values: Sequence[float], counts: Sequence[int] | None, power: int) -> float | None:
    if len(values) < 2:
        return None
    x = np.asarray(values, dtype=float)
    weights = np.ones(len(x)) if counts is None else np.asarray(counts, dtype=float)
    weights = weights / weights.sum()
    squares = weights**power @ (x - weights @ x) ** 2
    return math.sqrt(len(x) / (len(x) - 1) * squares)
