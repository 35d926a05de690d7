"""Magnitude pruning with the layer-wise rates of Erdos-Renyi-Kernel (Evci et al. 2020)."""

from collections.abc import Mapping

from torch import Tensor

from s2ap_core.methods.harp import scaled_counts
from s2ap_core.methods.magnitude import Magnitude


class MagnitudeErk(Magnitude):
    """Scores are ``|w|``; a layer's rate is proportional to the sum of its dimensions over their product, at most 1.

    The dimensions are those of the weight: [C_out, C_in, H, W] or [C_out, C_in]. One factor scales all rates that are
    below 1 to exactly the budget; each layer keeps at least one weight.
    """

    uniform = False

    def counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        sizes = [s.numel() for s in scores.values()]
        rates = [sum(s.shape) / s.numel() for s in scores.values()]
        return dict(zip(scores, scaled_counts(rates, sizes, self.settings.keep, 0.0), strict=True))
