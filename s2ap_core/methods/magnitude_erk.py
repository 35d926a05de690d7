"""Magnitude pruning with the layer-wise rates of Erdos-Renyi-Kernel (Evci et al. 2020)."""

from collections.abc import Mapping

from torch import Tensor

from s2ap_core.methods.magnitude import Magnitude
from s2ap_core.methods.rates import erk_counts


class MagnitudeErk(Magnitude):
    """Scores are ``|w|``; each layer keeps what :func:`s2ap_core.methods.rates.erk_counts` gives it."""

    uniform = False

    def counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        return erk_counts(scores, self.settings.keep)
