"""RLTH, robust scratch tickets (Fu et al. 2021): a mask found in weights that are never trained."""

import math
from collections.abc import Collection

import torch
from torch import nn

from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import every_layer
from s2ap_core.masks.parametrization import ScoreMask, check_keep
from s2ap_core.methods.base import Method


class Rlth(Method):
    """Weights ``sign * sqrt(2 / fan_in)`` (or kaiming normal), scores kaiming uniform with a = sqrt 5.

    Biases are 0 and are not trained: the published networks have none, not even in the last layer. The
    network's BatchNorm has no affine parameters (``network.norm_affine = false`` in the presets).
    """

    reads: Collection[str] = ("keep", "init")

    pretrained = False
    finetuned = False

    @torch.no_grad()
    def initialise(self, model: nn.Module, generator: torch.Generator) -> None:
        for layer in self.layers(model).values():
            weight = layer.weight
            nn.init.normal_(weight, std=math.sqrt(2) / math.sqrt(layer.fan_in), generator=generator)  # kaiming
            if self.settings.init == "signed-constant":
                weight.copy_(weight.sign() * math.sqrt(2 / layer.fan_in))
        for layer in every_layer(model):
            for name, parameter in layer.module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    parameter.zero_()

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        check_keep(self.settings.keep)

        def make(name: str, layer: Layer) -> ScoreMask:
            del name
            weight = layer.weight
            scores = torch.empty(weight.shape, dtype=weight.dtype)  # where the generator draws
            bound = math.sqrt(3) * nn.init.calculate_gain("leaky_relu", math.sqrt(5)) / math.sqrt(layer.fan_in)
            nn.init.uniform_(scores, -bound, bound, generator=generator)
            return ScoreMask(scores.to(weight.device), self.settings.keep)

        self.mask_layers(model, make)
