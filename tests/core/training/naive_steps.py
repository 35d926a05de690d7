"""A step of each norm for one image, in NumPy and plain loops."""

import itertools

import numpy as np


def naive_step(norm, x, x_adv, gradient, eps, step):
    """One step of one image; all flat arrays of float64."""
    if norm == "Linf":
        return np.clip(np.clip(x_adv + step * np.sign(gradient), x - eps, x + eps), 0, 1)
    if norm == "L2":
        moved = np.clip(x_adv + step * gradient / max(np.sqrt((gradient**2).sum()), 1e-300), 0, 1) - x
        length = np.sqrt((moved**2).sum())
        return x + moved * min(1, eps / length) if length else x
    free = [
        i for i, (a, g) in enumerate(zip(x_adv, gradient, strict=True)) if g and (a > 0 or g > 0) and (a < 1 or g < 0)
    ]
    largest = sorted(free, key=lambda i: -abs(gradient[i]))[: max(1, round(0.05 * len(x)))]
    moved = x_adv - x
    for i in largest:
        moved[i] += step * np.sign(gradient[i]) / len(largest)
    return x + naive_projection(x, moved, eps)


def naive_projection(x, moved, eps):
    """The threshold is between two of the values at which an entry begins or ceases to shrink: try each gap."""
    sizes, room = np.abs(moved), np.where(moved > 0, 1 - x, x)

    def shrunk(t):
        return np.minimum(np.maximum(sizes - t, 0), room)

    if shrunk(0).sum() <= eps:
        return np.sign(moved) * shrunk(0)
    corners = sorted({0.0, *sizes, *np.maximum(sizes - room, 0)})
    for low, high in itertools.pairwise(corners):
        above, below = shrunk(low).sum(), shrunk(high).sum()
        if below <= eps <= above:
            t = low if above == below else low + (high - low) * (above - eps) / (above - below)
            return np.sign(moved) * shrunk(t)
    raise AssertionError
