"""Masks without a search: scores that the dense network has, and how many of them each layer keeps.

A method of this kind says what its scores are (:meth:`OneShot.scores_of`) and, where layers do not all keep the same
fraction, how the budget is shared out (:meth:`OneShot.counts`).
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.parametrization import LayerMask, check_keep
from s2ap_core.masks.topk import n_dropped, topk_mask
from s2ap_core.methods.base import Attacked, Loss, Method

Scores = dict[str, Tensor]
"""By layer name, in the network's order: scores of the weight's shape."""


class OneShot(Method):
    """A mask of the largest scores in the pretrained network; by default each layer keeps the same fraction."""

    reads: Collection[str] = ("keep",)
    searches = False

    @abstractmethod
    def scores_of(
        self, model: nn.Module, batches: Iterable[Attacked], loss: Loss, generator: torch.Generator
    ) -> Scores:
        """Compute the scores of each maskable layer, at least 0, arguments as for :meth:`start`."""

    def counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        """Count what each layer keeps, by layer name."""
        return {name: s.numel() - n_dropped(s.numel(), self.settings.keep) for name, s in scores.items()}

    def start(self, model: nn.Module, generator: torch.Generator, batches: Iterable[Attacked], loss: Loss) -> None:
        self._attach(model, self.scores_of(model, batches, loss, generator))

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Mask ``model`` in place by its weights' magnitudes: as large on disk as the mask that :meth:`start` makes."""
        del generator
        self._attach(model, magnitudes(model))

    def _attach(self, model: nn.Module, scores: Scores) -> None:
        check_keep(self.settings.keep)
        own = self.own_keeps(model)
        counts = self.counts({name: scores[name] for name in self.layers(model) if name not in own})
        self.mask_layers(model, lambda name, _: LayerMask(scores[name], counts.get(name, 0) / scores[name].numel()))


class Global(OneShot):
    """One threshold for all layers: exactly the budget, however it falls on them."""

    uniform = False

    def counts(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        every = torch.cat([s.detach().flatten().cpu() for s in scores.values()])
        kept = topk_mask(every, every.numel() - n_dropped(every.numel(), self.settings.keep))
        parts = kept.split([s.numel() for s in scores.values()])
        return {name: int(part.sum()) for name, part in zip(scores, parts, strict=True)}


def magnitudes(model: nn.Module) -> Scores:
    """Compute ``|w|`` of each maskable layer."""
    return {name: layer.weight.detach().abs() for name, layer in maskable_layers(model, embeddings=True).items()}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """Compute the gradient of a loss in the weights of each maskable layer, float64; 0 in weights it does not read."""
    weights = [layer.weight for layer in maskable_layers(model, embeddings=True).values()]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return [torch.zeros_like(w).double() if g is None else g.double() for w, g in zip(weights, found, strict=True)]


def weighted(model: nn.Module, factors: Iterable[Tensor]) -> Scores:
    """Compute ``|w| * factor`` of each maskable layer in float64; scores of the weight's dtype.

    Where a factor is the root of a mean square, the scores are the roots of ``w^2 * mean``: they rank the same, and
    do not underflow.
    """
    pairs = zip(magnitudes(model).items(), factors, strict=True)
    return {name: (magnitude.double() * factor).to(magnitude.dtype) for (name, magnitude), factor in pairs}
