"""HYDRA (Sehwag et al. 2020): scores proportional to the weights, one keep rate for every layer."""

from collections.abc import Collection

import torch
from torch import nn

from s2ap_core.masks.masking import scaled_scores
from s2ap_core.masks.parametrization import ScoreMask, check_keep
from s2ap_core.methods.base import Method


class Hydra(Method):
    """Scores start at ``sqrt(6 / fan_in) * w / max|w|``; each layer keeps the same fraction."""

    reads: Collection[str] = ("keep",)

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        del generator
        check_keep(self.settings.keep)
        self.mask_layers(model, lambda name, layer: ScoreMask(scaled_scores(layer), self.settings.keep))
