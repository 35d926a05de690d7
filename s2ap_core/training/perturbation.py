"""Sharpness-aware minimisation: perturb, differentiate there, restore.

Algorithm 1 of the paper (S2AP, on scores) and Algorithm 2 (AWP, on masked weights) are one algorithm
on different parameters, so one class holds lines 6-9 and 11 of the first and 5-8 and 10 of the second.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from s2ap_core.distributed.group import add_up
from s2ap_core.masks.layers import is_masked, mask_of, one_mask, raw_weight, score_masks
from s2ap_core.modes import frozen_statistics


@dataclass(frozen=True)
class PerturbedLayer:
    """One layer's perturbed tensor, and the norm of it that the radius is a multiple of."""

    tensor: nn.Parameter
    norm: Callable[[], Tensor]


def score_layers(model: nn.Module) -> list[PerturbedLayer]:
    """Collect the scores of each masked layer; HARP's rates are not perturbed."""
    return [PerturbedLayer(mask.scores, mask.scores.norm) for mask in score_masks(model).values()]


def weight_layers(model: nn.Module) -> list[PerturbedLayer]:
    """Collect the weights of each masked layer; their norm is that of ``w * m``, as is their gradient."""
    layers = [layer for layer in model.modules() if is_masked(layer)]
    return [PerturbedLayer(raw_weight(layer), _masked_norm(layer)) for layer in layers]


def _masked_norm(layer: nn.Module) -> Callable[[], Tensor]:
    return lambda: (raw_weight(layer) * mask_of(layer).mask()).norm()


class Perturbation:
    """A worst-case perturbation z of some layers, within a ball ``|z_l| <= gamma |s_l|`` for each layer l.

    Args:
        model: the model, whose BatchNorm statistics the extra pass leaves alone.
        layers: what is perturbed, see :func:`score_layers` and :func:`weight_layers`.
        gamma: radius of each layer's ball, relative to the layer's norm (Eq. 5 and 7).
        eta_z: length of the ascent step. Infinite (the default) puts every layer on its sphere, as AWP's
            code does; a finite one is line 6 as printed, where ``"lr"`` is the optimizer's learning rate.
        carry: start from the last iteration's z instead of 0, the literal reading of line 6.
        single_step: ascend along the gradient that the last iteration took at s + z, instead of making an extra
            pass (after Ji et al. 2024); the first iteration of an epoch makes that pass.
        subset: share of the batch that the extra pass sees.
        every: how many iterations in a row use one z.

    Attributes:
        loss: L(s), the loss that the ascent started from, after a block of :meth:`applied`; NaN if it
            was not computed at s and on the whole batch.
        on_perturbed: called once per :meth:`applied`, when s + z is in force; for trackers.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PerturbedLayer],
        *,
        gamma: float,
        eta_z: float | Literal["lr"] = float("inf"),
        carry: bool = False,
        single_step: bool = False,
        subset: float = 1.0,
        every: int = 1,
    ) -> None:
        self.model, self.layers = model, layers
        self.gamma, self.eta_z, self.carry = gamma, eta_z, carry
        self.single_step, self.subset, self.every = single_step, subset, every
        self.z: list[Tensor] | None = None
        self._age = 0
        self.loss = torch.tensor(torch.nan)
        self.on_perturbed: Callable[[], None] | None = None

    @contextmanager
    def applied(self, robust_loss: Callable[[], Tensor], lr: float) -> Iterator[None]:
        """Perturb s to s + z within the block; afterwards s is what it was, to the last bit.

        Args:
            robust_loss: L as a function of what the perturbed tensors hold.
            lr: the optimizer's learning rate, which is the ascent step with ``eta_z = "lr"``.
        """
        tensors = [layer.tensor for layer in self.layers]
        before = [tensor.detach().clone() for tensor in tensors]
        self.loss = torch.tensor(torch.nan)
        try:
            if self.z is None or self._age % self.every == 0:
                if self.carry and self.z is not None:
                    _add(tensors, self.z)
                else:
                    self.z = [torch.zeros_like(tensor) for tensor in before]
                gradient = self._gradient(robust_loss, tensors)
                _copy(tensors, before)
                radii = [self.gamma * layer.norm().detach() for layer in self.layers]
                eta = lr if self.eta_z == "lr" else self.eta_z
                self.z = ascend_and_project(self.z, gradient, radii, eta)
            self._age += 1
            _add(tensors, self.z)
            if self.on_perturbed is not None:
                self.on_perturbed()
            yield
        finally:
            _copy(tensors, before)

    def begin_epoch(self) -> None:
        """Forget the age of z and the last gradient, which a run resumed here would not know."""
        self._age = 0
        for layer in self.layers:
            layer.tensor.grad = None

    def _gradient(self, robust_loss: Callable[[], Tensor], tensors: list[nn.Parameter]) -> list[Tensor]:
        last = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if self.single_step and len(last) == len(tensors):
            return last
        frozen = [tensor for tensor in tensors if not tensor.requires_grad]
        for tensor in frozen:
            tensor.requires_grad_(True)
        try:
            with frozen_statistics(self.model), one_mask(self.model):
                loss = robust_loss()
                loss, *gradient = add_up([loss.detach(), *torch.autograd.grad(loss, tensors)])
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        if self.subset == 1 and not self.carry:
            self.loss = loss
        return gradient


@torch.no_grad()
def ascend_and_project(
    z: Sequence[Tensor], gradient: Sequence[Tensor], radii: Sequence[Tensor], eta: float
) -> list[Tensor]:
    """Run lines 6-9 of Algorithm 1: ``z + eta g / |g|``, then each layer back into its ball.

    The norm of line 6 runs over all layers. With infinite ``eta`` the ascent direction alone counts, and
    z_l is ``radius_l * g_l / |g_l|``, 0 where the gradient is 0. A gradient that is not finite gives 0 too: the
    loss that it comes from stops the search.
    """
    if eta == float("inf"):
        norms = [g.norm() for g in gradient]
        return [_along(g, n, r) for g, n, r in zip(gradient, norms, radii, strict=True)]
    total = torch.stack([g.norm() for g in gradient]).norm()
    ascended = [z_l + _along(g, total, eta) for z_l, g in zip(z, gradient, strict=True)]
    norms = [z_l.norm() for z_l in ascended]
    return [z_l * torch.where(n > r, r / n, 1.0) for z_l, n, r in zip(ascended, norms, radii, strict=True)]


def _along(g: Tensor, norm: Tensor, length: Tensor | float) -> Tensor:
    """Compute ``length * g / norm``; 0 where the norm is 0 or not finite."""
    return torch.where((norm > 0) & norm.isfinite(), length / norm * g, 0.0)


@torch.no_grad()
def _add(tensors: Sequence[Tensor], deltas: Sequence[Tensor]) -> None:
    for tensor, delta in zip(tensors, deltas, strict=True):
        tensor.add_(delta)


@torch.no_grad()
def _copy(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
