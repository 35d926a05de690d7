"""Select the entries of largest magnitude, and differentiate straight through the selection."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2ap_core.errors import InputError


def n_dropped(numel: int, keep: float) -> int:
    """Count the entries that a keep rate drops: ``int((1 - keep) * numel)``, as HYDRA and HARP count."""
    return int((1 - keep) * numel)


def topk_mask(magnitude: Tensor, n_keep: int) -> Tensor:
    """Mark the ``n_keep`` largest entries with 1, all others with 0.

    Ties at the threshold are broken as a stable ascending sort would: of equal entries the last ones
    in row-major order stay. Exactly ``n_keep`` entries are kept, whatever the memory layout.

    Args:
        magnitude: any shape and layout, no gradient needed.
        n_keep: 0 to ``magnitude.numel()``.

    Returns:
        Tensor of 0 and 1 with the shape, layout and dtype of ``magnitude``.

    Raises:
        InputError: if ``magnitude`` holds NaN, for which no order exists.
    """
    if magnitude.device.type != "cpu":
        return topk_mask_on_device(magnitude, n_keep)
    n = magnitude.numel()
    if n_keep in (0, n):
        if magnitude.isnan().any():
            raise InputError("scores hold NaN: no top-k exists; restore an earlier epoch")
        return torch.full_like(magnitude, float(n_keep == n))
    values = magnitude.detach().numpy()
    # The threshold does not depend on the order of the entries: memory order needs no copy.
    threshold = _order_statistic(values.ravel(order="K"), n - n_keep)
    kept = values >= threshold
    surplus = int(np.count_nonzero(kept)) - n_keep
    if surplus < 0 or (surplus > 0 and np.isnan(values).any()) or np.isnan(values.max()):
        raise InputError("scores hold NaN: no top-k exists; restore an earlier epoch")
    if surplus:
        first_ties = np.argwhere(values == threshold)[:surplus]
        kept[tuple(first_ties.T)] = False
    return torch.from_numpy(kept).to(magnitude.dtype)


SAMPLE = 8192
"""Values that the place of an order statistic is estimated from."""


def _order_statistic(values: np.ndarray, position: int) -> Any:
    """Return the value that is at this position of a vector [n] in ascending order; of one with NaN, any.

    A sample gives two values that it almost surely lies between, and what lies there is partitioned: the idea of Floyd
    and Rivest's SELECT (1975). ``numpy.partition`` of all would give the same, a few times slower on many processors.
    """
    n = len(values)
    if n <= 16 * SAMPLE:
        return np.partition(values, position)[position]
    sample = np.sort(values[np.random.default_rng(0).integers(n, size=SAMPLE)])
    share = position / n
    margin = 4 * (SAMPLE * share * (1 - share)) ** 0.5 + 1  # standard deviations of the position in the sample
    first, last = int(SAMPLE * share - margin), int(SAMPLE * share + margin) + 1
    between = values >= (sample[first] if first >= 0 else -np.inf)
    below = n - int(np.count_nonzero(between))
    between &= values <= (sample[last] if last < SAMPLE else np.inf)
    candidates = values[between]
    if not 0 <= position - below < len(candidates):
        return np.partition(values, position)[position]
    return np.partition(candidates, position - below)[position - below]


def topk_mask_on_device(magnitude: Tensor, n_keep: int | Tensor) -> Tensor:
    """Select as :func:`topk_mask`, in few kernels and without a host synchronisation.

    Args:
        n_keep: a number, or an integer scalar on the device, as HARP's learned rates give it.
    """
    flat = magnitude.detach().reshape(-1)
    n = flat.numel()
    ascending, order = flat.sort(stable=True)
    # Nothing can be raised without a synchronisation: NaN, which sorts last, makes the mask, and so the loss, NaN.
    one = ascending[-1:] * 0 + 1
    if isinstance(n_keep, Tensor):
        kept = torch.empty_like(flat).scatter_(0, order, (torch.arange(n, device=flat.device) >= n - n_keep) * one)
    else:
        kept = torch.zeros_like(flat).scatter_(0, order[n - n_keep :], one.expand(n_keep))
    kept = kept.view(magnitude.shape)
    return kept if magnitude.is_contiguous() else torch.empty_like(magnitude).copy_(kept)  # the layout of the scores


def select_topk(magnitude: Tensor, n_keep: int | Tensor) -> Tensor:
    """Select as :func:`topk_mask`, a number of entries that may be a scalar on the device."""
    return topk_mask_on_device(magnitude, n_keep) if isinstance(n_keep, Tensor) else topk_mask(magnitude, n_keep)


def kth_smallest(values: Tensor, k: Tensor) -> Tensor:
    """Select the k-th smallest of all values for each k in a vector, counted from 1; nothing is read from a GPU.

    Where there are fewer than k, the largest.
    """
    position = (k.long() - 1).clamp(max=values.numel() - 1)
    if values.device.type == "cpu":
        return torch.from_numpy(np.partition(values.numpy().ravel(order="K"), position.numpy())[position.numpy()])
    return values.reshape(-1).sort().values[position]


def straight_through_topk(scores: Tensor, keep: Tensor | None, n_keep: int | Tensor) -> Tensor:
    """Select by ``|s|`` as :func:`topk_mask`; backward, pass the mask's gradient to ``|s|``.

    Args:
        scores: s.
        keep: a learned keep rate, a scalar, to which the gradient's sum passes (HARP); None where it is fixed.
        n_keep: how many entries to keep; an integer scalar on the device where reading it would wait.
    """
    mask: Tensor = _StraightThroughTopK.apply(scores, keep, n_keep)  # type: ignore[no-untyped-call]
    return mask


class _StraightThroughTopK(torch.autograd.Function):
    """M(|s|, k) forward; backward the identity to |s|, and to k the sum of the mask's gradient (HARP)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: Tensor | None, n_keep: int | Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return select_topk(scores.abs(), n_keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (scores,) = grads, ctx.saved_tensors
        # Not through abs(), whose second derivative autograd takes the trouble to find to be 0.
        return grad * scores.detach().sign(), grad.sum() if ctx.needs_input_grad[1] else None, None
