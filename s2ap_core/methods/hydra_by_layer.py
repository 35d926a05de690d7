"""HYDRA's search with a keep rate of each layer's own, fixed before it starts."""

from abc import abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.masking import scaled_scores
from s2ap_core.masks.parametrization import LayerMask, ScoreMask, check_keep
from s2ap_core.methods.hydra import Hydra
from s2ap_core.methods.rates import erk_counts, spectral_counts


class HydraByLayer(Hydra):
    """HYDRA's scores; how many of them each layer keeps depends on the dense weights."""

    uniform = False

    @abstractmethod
    def counts(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Count what each layer keeps, by layer name."""

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        del generator
        check_keep(self.settings.keep)
        own = self.own_keeps(model)
        shared = {name: layer for name, layer in self.layers(model).items() if name not in own}
        counts = self.counts({name: layer.by_output(layer.weight.detach()) for name, layer in shared.items()})

        def make(name: str, layer: Layer) -> ScoreMask:
            scores = scaled_scores(layer)
            return LayerMask(scores, counts.get(name, 0) / scores.numel())

        self.mask_layers(model, make)


class HydraErk(HydraByLayer):
    """HYDRA with the rates of Erdos-Renyi-Kernel."""

    def counts(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return erk_counts(weights, self.settings.keep)


class HydraSpectral(HydraByLayer):
    """HYDRA with rates from the spectra of the dense weights, AlphaPruning's."""

    reads: Collection[str] = ("keep", "tau")

    def counts(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return spectral_counts(weights, self.settings.keep, self.settings.tau)
