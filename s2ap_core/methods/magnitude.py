"""Layer-wise magnitude pruning (Han et al. 2015): the largest weights of each layer, without a search."""

from collections.abc import Iterable

import torch
from torch import nn

from s2ap_core.methods.base import Attacked, Loss
from s2ap_core.methods.one_shot import OneShot, Scores, magnitudes


class Magnitude(OneShot):
    """Scores are ``|w|``; each layer keeps the same fraction, so that the mask is the one HYDRA starts from."""

    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        del batches, loss, generator
        return magnitudes(model)
