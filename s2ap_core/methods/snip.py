"""SNIP (Lee et al. 2019) under the adversarial loss: how much each mask entry changes the loss, to first order."""

from collections.abc import Collection, Iterable

import torch
from torch import nn

from s2ap_core.methods.base import Attacked, Loss
from s2ap_core.methods.one_shot import Global, Scores, gradients, weighted


class Snip(Global):
    """Scores are ``|g w|``, g the robust loss's gradient over all ``method.batches``; one threshold for all layers.

    The published method reads g in an untrained network; here it is the pretrained one, as for all methods.
    """

    reads: Collection[str] = ("keep", "batches")

    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        del generator
        sums: list[torch.Tensor] = []
        for x, x_adv, y in batches:
            found = [len(y) * g for g in gradients(model, loss(model, x, x_adv, y))]
            sums = [total + g for total, g in zip(sums, found, strict=True)] if sums else found
        return weighted(model, [total.abs() for total in sums])
