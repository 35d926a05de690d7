"""MAD, masking adversarial damage (Lee et al. 2022): the second-order damage of removing a weight.

The published code takes the Hessian's blocks from a Kronecker factorisation; here it is the empirical Fisher matrix's
diagonal, which needs no approximation of its own.
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from s2ap_core.methods.base import Attacked, Loss
from s2ap_core.methods.one_shot import Global, Scores, gradients, weighted


class Mad(Global):
    """Saliency is ``w^2 F / 2``, F the mean square of the robust loss's gradient, image by image, over all batches.

    Scores are the roots, which rank the same; one threshold for all layers.
    """

    reads: Collection[str] = ("keep", "batches")

    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        del generator
        sums: list[Tensor] = []
        count = 0
        for batch in batches:
            for x, x_adv, y in zip(*(part.split(1) for part in batch), strict=True):
                squares = [g.square_() for g in gradients(model, loss(model, x, x_adv, y))]
                sums = [total.add_(square) for total, square in zip(sums, squares, strict=True)] if sums else squares
                count += 1
        return weighted(model, [(total / (2 * count)).sqrt() for total in sums])
