"""What a pruning method decides; the search itself is the same for all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2ap_core.config import MethodSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.choice import chosen_layers, own_keeps, with_own_keeps
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.masking import attach_masks
from s2ap_core.masks.parametrization import Mask


class Attacked(NamedTuple):
    """A batch of training images [B, C, H, W], the same under attack, and their classes [B]."""

    x: Tensor
    x_adv: Tensor
    y: Tensor


Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""``(model, x, x_adv, y) -> scalar``: the mean of a robust loss over a batch."""


class Method(ABC):
    """One way to prune by scores.

    Attributes:
        reads: which of its settings it reads; others are refused where they are not at their default. All read
            ``only`` and ``skip``, all that read ``keep`` also ``keep_layers`` and ``embeddings``.
        pretrained: whether the search starts from trained weights; if not, from :meth:`initialise`.
        searches: whether scores are optimised; if not, the first mask is the last, and ``prune.epochs`` is not read.
        uniform: whether each layer keeps the same fraction.
        finetuned: whether weights are trained under the final mask.
        counts_flops: whether ``flops_reduction`` is the budget, instead of ``keep``.
        image_shape: (C, H, W) of the images, to be set where FLOPs are counted.
    """

    reads: Collection[str] = MethodSettings.model_fields.keys()
    pretrained = True
    searches = True
    uniform = True
    finetuned = True
    counts_flops = False
    image_shape: tuple[int, int, int] | None = None

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings

    def initialise(self, model: nn.Module, generator: torch.Generator) -> None:
        """Set the untrained weights that a method without pretraining searches in; others keep theirs."""

    def layers(self, model: nn.Module) -> dict[str, Layer]:
        """List the layers that settings let it mask, by name.

        Raises:
            InputError: if one of their patterns stands for no layer, or no layer is left.
        """
        settings = self.settings
        return chosen_layers(model, only=settings.only, skip=settings.skip, embeddings=settings.embeddings)

    def check(self, model: nn.Module) -> None:
        """Refuse a network, plain and perhaps on the meta device, that the method cannot mask as settings ask.

        Raises:
            InputError: naming the setting and the remedy.
        """
        self.own_keeps(model)

    def own_keeps(self, model: nn.Module) -> dict[str, float]:
        """Return the keep rates of the layers that ``keep_layers`` names; ``keep`` is of the others together.

        Raises:
            InputError: if one of its patterns stands for no layer, or it leaves a method that shares ``keep`` out none.
        """
        layers = self.layers(model)
        own = own_keeps(layers, self.settings.keep_layers)
        if len(own) == len(layers) and not self.uniform:
            raise InputError(
                f"keep_layers names every layer: method {self.settings.name} has none to share out keep among; leave "
                "one out"
            )
        return own

    def mask_layers(self, model: nn.Module, make: Callable[[str, Layer], Mask]) -> None:
        """Mask ``model`` in place, each layer by ``make(name, layer)``, those of ``keep_layers`` at their own rate."""
        attach_masks(model, with_own_keeps(make, self.own_keeps(model)), only=self.layers(model))

    @abstractmethod
    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Mask ``model`` in place with the scores that the search starts from."""

    def start(self, model: nn.Module, generator: torch.Generator, batches: Iterable[Attacked], loss: Loss) -> None:
        """Mask ``model`` in place before the first epoch; methods that read no images just :meth:`attach`.

        Args:
            model: the dense network, in eval mode.
            batches: adversarial training images, made when they are asked for; the same in every process.
            loss: the robust loss of a batch.
        """
        del batches, loss
        self.attach(model, generator)

    def penalty(self, model: nn.Module, epoch: int) -> Tensor:
        """Compute what the method adds to the loss in this epoch (counted from 0), a scalar."""
        del model, epoch
        return torch.zeros(())

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Update what depends on the epoch; the search calls it once after each epoch."""

    def cut_to_budget(self, model: nn.Module) -> bool:
        """Make the mask keep exactly the budget, in place, by its keep rates alone; return whether that changed it."""
        del model
        return False

    def warnings(self) -> list[str]:
        """Return the warnings about a search that has ended, each with a remedy."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Collect what :meth:`load_state_dict` needs to go on after an interruption; JSON types alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
