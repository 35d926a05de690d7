"""Keep rates of layers that are there before a search: by the shapes of their weights, or by their spectra."""

from collections.abc import Mapping

import torch
from torch import Tensor

from s2ap_core.masks.parametrization import Unit
from s2ap_core.masks.topk import n_dropped
from s2ap_core.methods.harp import keep_floor, scaled_counts, whole_counts


def erk_counts(weights: Mapping[str, Tensor], keep: float) -> dict[str, int]:
    """Count what each layer keeps by Erdos-Renyi-Kernel (Evci et al. 2020).

    A layer's rate is proportional to the sum of its dimensions over their product, at most 1. One factor scales all
    rates that are below 1 to exactly the budget; each layer keeps at least one weight.

    Args:
        weights: by layer name; the dimensions are theirs, [C_out, C_in, ...].
        keep: of all weights.
    """
    units = [Unit(sum(w.shape) / w.numel(), w.numel(), 1) for w in weights.values()]
    return dict(zip(weights, scaled_counts(units, keep, 0.0), strict=True))


def spectral_counts(weights: Mapping[str, Tensor], keep: float, tau: float) -> dict[str, int]:
    """Count what each layer keeps by AlphaPruning's rule (Lu et al. 2024).

    With alpha_l the tail exponent of a layer's spectrum, its sparsity is a multiple of

        1 - tau + 2 tau (alpha_l - min alpha) / (max alpha - min alpha),

    the same for all layers, chosen to give exactly the budget: a heavy tail is a sign of a layer that has learnt much,
    which is pruned less. Where this would leave a layer less than a tenth of ``keep``, HARP's floor, tau is lowered.
    Layers without an exponent count as the mean of the others.

    Args:
        weights: by layer name, of the dense network, [C_out, C_in, ...].
        keep: of all weights.
        tau: half the spread of the layers' sparsities around the network's, relative to it.
    """
    alpha = torch.tensor([tail_exponent(spectrum(w)) for w in weights.values()], dtype=torch.float64)
    known = alpha.isfinite()
    place = torch.full_like(alpha, 0.5)
    if known.any() and alpha[known].max() > alpha[known].min():
        alpha = torch.where(known, alpha, alpha[known].mean())
        place = (alpha - alpha.min()) / (alpha.max() - alpha.min())
    sizes = torch.tensor([w.numel() for w in weights.values()], dtype=torch.float64)
    total = int(sizes.sum())
    dropped = n_dropped(total, keep)
    # The sparsest layer's is (1 + tau) / (1 + tau tilt) of the network's.
    tilt = float(2 * (sizes * place).sum() / total - 1)
    steepness = (1 - keep) - (1 - keep_floor(keep)) * tilt
    if steepness > 0:
        tau = min(tau, (keep - keep_floor(keep)) / steepness)
    ratio = 1 + tau * (2 * place - 1)
    exact = sizes - dropped * sizes * ratio / (sizes * ratio).sum()
    counts = whole_counts(exact.tolist(), total - dropped, [1] * len(sizes), [w.numel() for w in weights.values()])
    return dict(zip(weights, counts, strict=True))


@torch.no_grad()
def spectrum(weight: Tensor) -> Tensor:
    """Compute the squared singular values of a weight as a matrix [C_out, rest], descending, float64 on the CPU."""
    matrix = weight.detach().double().cpu().flatten(1)
    singular: Tensor = torch.linalg.svdvals(matrix)
    return singular.square()


def tail_exponent(eigenvalues: Tensor) -> float:
    """Estimate the exponent alpha of a density that falls as ``x^-alpha`` from the largest half (Hill 1975).

    Of n eigenvalues ``x_1 >= ... >= x_n`` and k = n // 2, it is ``1 + k / sum over i <= k of log(x_i / x_(k + 1))``.
    Those that are 0 but for rounding, at most ``n eps x_1``, are left out and not counted.

    Args:
        eigenvalues: [n], at least 0, descending; of a floating point type of that eps.

    Returns:
        NaN or infinity where there is no tail: of fewer than two eigenvalues, or where half of them are equal.
    """
    if len(eigenvalues):
        rounding = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[0]
        eigenvalues = eigenvalues[eigenvalues > rounding]
    k = len(eigenvalues) // 2
    logs = eigenvalues[: k + 1].log()
    return 1 + float(k / (logs[:k] - logs[k]).sum()) if k else float("nan")
