"""The balls of the threat models: a step of steepest ascent that stays in one, and a point drawn from one.

Images are float tensors [B, C, H, W] in [0, 1]. Nothing here reads a value back to the host, so that a GPU can record
the steps, see :func:`s2ap_core.training.replay.repeat`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s2ap_core.config import AttackNorm
from s2ap_core.distributed.share import draw

Step = Callable[[Tensor, Tensor], Tensor]
"""``(x_adv, gradient) -> x_adv``."""


SHARE = 0.05
"""Of an image's entries, that a step in the L1 ball moves.

Auto-PGD begins with 0.2 and comes down to what the perturbation needs; steps of one share are strongest near where it
ends.
"""


HALVINGS = 30
"""Of the interval that the L1 projection's threshold lies in: beyond float32's 24 bits."""


def ascent(norm: AttackNorm, x: Tensor, eps: float, step: float) -> Step:
    """Return the step of length ``step`` up the gradient that stays within ``eps`` of ``x`` and within [0, 1].

    Linf goes along the gradient's signs, L2 along the gradient, and L1 along the signs of its largest entries, as
    Auto-PGD's L1 variant does (Croce & Hein 2021, "Mind the box"), those left out that an end of [0, 1] holds back.
    """
    return {"Linf": _linf_ascent, "L2": _l2_ascent, "L1": _l1_ascent}[norm](x, eps, step)


def _linf_ascent(x: Tensor, eps: float, step: float) -> Step:
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)

    def move(x_adv: Tensor, gradient: Tensor) -> Tensor:
        return torch.clamp(x_adv + step * gradient.sign(), low, high)

    return move


def _l2_ascent(x: Tensor, eps: float, step: float) -> Step:
    def move(x_adv: Tensor, gradient: Tensor) -> Tensor:
        # First by the largest entry: the squares of a confident network's gradient are 0 in float32.
        scaled = gradient / _at_least_tiny(gradient.abs().amax(_axes(x), keepdim=True))
        moved = (x_adv + step * scaled / _at_least_tiny(_length(scaled, 2))).clamp(0, 1) - x
        return x + moved * (eps / _at_least_tiny(_length(moved, 2))).clamp_max(1)

    return move


def _l1_ascent(x: Tensor, eps: float, step: float) -> Step:
    def move(x_adv: Tensor, gradient: Tensor) -> Tensor:
        held = ((x_adv <= 0) & (gradient < 0)) | ((x_adv >= 1) & (gradient > 0))
        sizes = gradient.abs().masked_fill(held, 0)
        count = max(1, round(SHARE * x.shape[1:].numel()))  # of a part without an image, too
        least = sizes.flatten(1).topk(count, dim=1, sorted=False).values.amin(1).view(-1, *[1] * (x.ndim - 1))
        signs = gradient.sign() * ((sizes >= least) & (sizes > 0))
        return x + project_l1(x, x_adv + step * signs / _length(signs, 1).clamp_min(1) - x, eps)

    return move


def project_l1(x: Tensor, moved: Tensor, eps: float) -> Tensor:
    """Find the point nearest to ``x + moved``, in l2, within ``eps`` of ``x`` in l1 and within [0, 1].

    An entry of size v with room u shrinks to min(max(v - t, 0), u), with the same t >= 0 for all entries of an image,
    the smallest for which their sum is at most ``eps``. It is found by bisection: the sorting projection of
    ``pyautoattack`` selects images by a value that it reads back from the GPU, and computes in float32 whatever it is
    given.

    Args:
        x: in [0, 1].

    Returns:
        The nearest point minus ``x``, of the shape of ``x``.
    """
    sizes, axes = moved.abs(), _axes(x)
    room = torch.where(moved > 0, 1 - x, x)

    def shrunk(threshold: Tensor) -> Tensor:
        return torch.minimum((sizes - threshold).clamp_min(0), room)

    high = sizes.amax(axes, keepdim=True)
    low = torch.zeros_like(high)
    inside = shrunk(low).sum(axes, keepdim=True) <= eps
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = shrunk(middle).sum(axes, keepdim=True) <= eps
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return moved.sign() * shrunk(high.masked_fill(inside, 0))


def uniform_start(x: Tensor, eps: float, generator: torch.Generator, norm: AttackNorm = "Linf") -> Tensor:
    """Add noise to ``x`` that is uniform in the ball of radius ``eps``, and clip the images to [0, 1]."""
    if norm == "Linf":
        return (x + eps * (2 * draw(torch.rand, x, generator) - 1)).clamp(0, 1)
    one = x[(slice(None), *[slice(1)] * (x.ndim - 1))]
    if norm == "L2":
        noise, share = draw(torch.randn, x, generator), draw(torch.rand, one, generator)
        return (x + eps * share ** (1 / x.shape[1:].numel()) * noise / _at_least_tiny(_length(noise, 2))).clamp(0, 1)
    # Exponential sizes over their sum and one more are uniform in the simplex (Devroye 1986, XI.2).
    uniform = 2 * draw(torch.rand, x, generator) - 1
    sizes, more = (-_at_least_tiny(values).log() for values in (uniform.abs(), draw(torch.rand, one, generator)))
    return (x + eps * uniform.sign() * sizes / (sizes.sum(_axes(x), keepdim=True) + more)).clamp(0, 1)


def normal_start(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of standard deviation ``scale`` to ``x``: where TRADES and MART start from in every norm."""
    return x + scale * draw(torch.randn, x, generator)


def _axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _length(values: Tensor, order: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values, order, dim=_axes(values), keepdim=True)
    return length


def _at_least_tiny(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)
