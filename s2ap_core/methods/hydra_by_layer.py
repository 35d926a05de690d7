"""HYDRA's search with a keep rate of each layer's own, fixed before it starts."""

from abc import abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.masking import attach_masks, scaled_scores
from s2ap_core.masks.parametrization import LayerMask, check_keep
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
        weights = {name: layer.by_output(layer.weight.detach()) for name, layer in maskable_layers(model).items()}
        counts = self.counts(weights)
        attach_masks(
            model,
            lambda name, layer: LayerMask(scaled_scores(layer), counts[name] / weights[name].numel()),
        )


class HydraErk(HydraByLayer):
    """HYDRA with the rates of Erdos-Renyi-Kernel."""

    def counts(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return erk_counts(weights, self.settings.keep)


class HydraSpectral(HydraByLayer):
    """HYDRA with rates from the spectra of the dense weights, AlphaPruning's."""

    reads: Collection[str] = ("keep", "tau")

    def counts(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return spectral_counts(weights, self.settings.keep, self.settings.tau)
