"""Random pruning: the mask that any criterion has to beat."""

from collections.abc import Iterable

import torch
from torch import nn

from s2ap_core.masks.layers import maskable_layers
from s2ap_core.methods.base import Attacked, Loss
from s2ap_core.methods.one_shot import OneShot, Scores


class Random(OneShot):
    """Scores are uniform in [0, 1), drawn anew for each seed; each layer keeps the same fraction."""

    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        del batches, loss
        weights = {name: layer.weight for name, layer in maskable_layers(model, embeddings=True).items()}
        return {
            name: torch.rand(w.shape, generator=generator, dtype=w.dtype).to(w.device) for name, w in weights.items()
        }
