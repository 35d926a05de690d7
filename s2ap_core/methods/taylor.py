"""First-order Taylor pruning (Molchanov et al. 2019) under the adversarial loss."""

from collections.abc import Collection, Iterable

import torch
from torch import nn

from s2ap_core.methods.base import Attacked, Loss
from s2ap_core.methods.one_shot import Global, Scores, gradients, weighted


class Taylor(Global):
    """Importance is ``(g w)^2``, its mean over ``method.batches`` gradients g of a batch; one threshold for all layers.

    Scores are the roots, which rank the same. Of one batch it is SNIP; of several it does not let their signs cancel.
    """

    reads: Collection[str] = ("keep", "batches")

    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        del generator
        squares = [[g.square() for g in gradients(model, loss(model, *batch))] for batch in batches]
        return weighted(model, [torch.stack(of_layer).mean(0).sqrt() for of_layer in zip(*squares, strict=True)])
