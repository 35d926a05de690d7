"""Sharpness-aware minimisation: perturb, differentiate there, restore.

Algorithm 1 of the paper (S2AP, on scores) and Algorithm 2 (AWP, on masked weights) are one algorithm
on different parameters, so one class holds lines 6-9 and 11 of the first and 5-8 and 10 of the second.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from s2ap_core.distributed.group import add_up
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import constant_weights, one_mask
from s2ap_core.modes import frozen_statistics
from s2ap_core.seeds import generator
from s2ap_core.training.ball import PerturbedLayer, Radius

Source = Literal["pass", "last", "attack", "momentum"]
Direction = Literal["gradient", "reversed", "shuffled", "random"]


class Perturbation:
    """A worst-case perturbation z of some layers, within a ball ``|z_l| <= r_l`` for each layer l.

    Args:
        model: the model, whose BatchNorm statistics the extra pass leaves alone.
        layers: what is perturbed, see :mod:`s2ap_core.training.ball`.
        radius: of each layer's ball, ``gamma |s_l|`` in the paper (Eq. 5 and 7).
        eta_z: length of the ascent step. Infinite (the default) puts every layer on its sphere, as AWP's
            code does; a finite one is line 6 as printed, where ``"lr"`` is the optimizer's learning rate.
        carry: start from the last iteration's z instead of 0, the literal reading of line 6.
        source: where the gradient of line 6 comes from: an extra ``pass``, as published; the ``last`` iteration's
            update, at its s + z (after Ji et al. 2024); the last backward pass of the ``attack`` on this batch, of
            the attack's loss; or the optimizer's ``momentum``. Where there is none yet, an extra pass makes it.
        direction: where z goes. Controls for ``gradient``: its opposite, ``reversed``; the entries of the last
            iteration's in random places, ``shuffled``; a normal draw, ``random``. The last two make no extra pass.
        subset: share of the batch that the extra pass sees.
        every: how many iterations in a row use one z.

    Attributes:
        loss: L(s), the loss that the ascent started from, after a block of :meth:`applied`; NaN if it
            was not computed at s and on the whole batch.
        reads_curvature: whether ``curvature`` is computed, at the memory of a gradient; trackers ask for it.
        curvature: ``(g(s + z) - g(s)) . z_l`` and ``|z_l|^2`` by layer, two vectors [layers], after a block of
            :meth:`applied` in which the loss was differentiated; None if g(s) was not computed as ``loss`` is.
        on_perturbed: called once per :meth:`applied`, when s + z is in force; for trackers.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PerturbedLayer],
        *,
        radius: Radius,
        eta_z: float | Literal["lr"] = float("inf"),
        carry: bool = False,
        source: Source = "pass",
        direction: Direction = "gradient",
        subset: float = 1.0,
        every: int = 1,
    ) -> None:
        self.model, self.layers, self.radius = model, layers, radius
        self.eta_z, self.carry = eta_z, carry
        self.source, self.direction, self.subset, self.every = source, direction, subset, every
        self.z: list[Tensor] | None = None
        self.loss = torch.tensor(torch.nan)
        self.reads_curvature = False
        self.curvature: tuple[Tensor, Tensor] | None = None
        self.on_perturbed: Callable[[], None] | None = None
        self._age = 0
        self._at_s: list[Tensor] | None = None
        self._of_attack: list[Tensor] | None = None

    @contextmanager
    def watching_attack(self) -> Iterator[None]:
        """Take the gradient from the attack made in the block, where that is the source; its weights are constant."""
        in_use = self.z is not None and self._age % self.every != 0
        if self.source != "attack" or self.direction in ("shuffled", "random") or in_use:
            yield
            return
        weights = [weight.requires_grad_(True) for weight in constant_weights(self.model)]
        yield
        if all(weight.grad is None for weight in weights):
            raise InputError(
                "minimizer.source = attack: the objective's attack leaves no gradient in the weights, as ours do in "
                "their last step; choose the source pass"
            )
        pulled = [layer.pulled(own) for layer, own in zip(self.layers, gradients_of(weights), strict=True)]
        self._of_attack = add_up(pulled)

    @contextmanager
    def applied(self, robust_loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, seed: int) -> Iterator[None]:
        """Perturb s to s + z within the block; afterwards s is what it was, to the last bit.

        Args:
            robust_loss: L as a function of what the perturbed tensors hold.
            optimizer: its learning rate is the ascent step with ``eta_z = "lr"``, its momentum a source.
            seed: of what is drawn, the same in all processes.
        """
        tensors = [layer.tensor for layer in self.layers]
        before = [tensor.detach().clone() for tensor in tensors]
        self.loss, self.curvature, self._at_s = torch.tensor(torch.nan), None, None
        try:
            if self.z is None or self._age % self.every == 0:
                if self.carry and self.z is not None:
                    _add(tensors, self.z)
                else:
                    self.z = [torch.zeros_like(tensor) for tensor in before]
                ascent = self._ascent(robust_loss, optimizer, seed)
                _copy(tensors, before)
                radii = self.radius(self.layers, ascent, seed)
                eta = optimizer.param_groups[0]["lr"] if self.eta_z == "lr" else self.eta_z
                self.z = ascend_and_project(self.z, ascent, radii, eta)
            self._age += 1
            _add(tensors, self.z)
            if self.on_perturbed is not None:
                self.on_perturbed()
            yield
            self._read_curvature(before)
            self._at_s = None
        finally:
            _copy(tensors, before)

    def begin_epoch(self) -> None:
        """Forget the age of z and the last gradient, which a run resumed here would not know."""
        self._age = 0
        for layer in self.layers:
            layer.tensor.grad = None

    def _ascent(self, robust_loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, seed: int) -> list[Tensor]:
        """Find where z goes, of any length."""
        tensors = [layer.tensor for layer in self.layers]
        if self.direction == "random":
            rng = generator(tensors[0].device, seed, "direction")
            return [torch.randn(t.shape, generator=rng, device=t.device, dtype=t.dtype) for t in tensors]
        gradient = self._known_gradient(optimizer) or self._gradient(robust_loss, tensors)
        if self.direction == "shuffled":
            rng = generator(tensors[0].device, seed, "direction")
            orders = [torch.randperm(g.numel(), generator=rng, device=g.device) for g in gradient]
            return [g.flatten()[order].view_as(g) for g, order in zip(gradient, orders, strict=True)]
        return [-g for g in gradient] if self.direction == "reversed" else gradient

    def _known_gradient(self, optimizer: torch.optim.Optimizer) -> list[Tensor] | None:
        """Return the gradient of a source that makes no pass, None where it has none yet."""
        tensors = [layer.tensor for layer in self.layers]
        if self.source == "last" or self.direction == "shuffled":
            known = [tensor.grad for tensor in tensors]
        elif self.source == "momentum":
            states = [optimizer.state.get(tensor, {}) for tensor in tensors]
            known = [state.get("momentum_buffer", state.get("exp_avg")) for state in states]
        else:
            return self._of_attack  # None where the source is the pass
        found = [gradient for gradient in known if gradient is not None]
        return found if len(found) == len(tensors) else None

    def _gradient(self, robust_loss: Callable[[], Tensor], tensors: list[nn.Parameter]) -> list[Tensor]:
        """Make the extra pass."""
        frozen = [tensor for tensor in tensors if not tensor.requires_grad]
        for tensor in frozen:
            tensor.requires_grad_(True)
        try:
            with frozen_statistics(self.model), one_mask(self.model):
                loss = robust_loss()
                loss, *gradient = loss_and_gradient(loss, tensors)
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)
        if self.subset == 1 and not self.carry:
            self.loss = loss
            self._at_s = gradient if self.reads_curvature else None
        return gradient

    def _read_curvature(self, before: list[Tensor]) -> None:
        """Compute the secant curvature along z from the gradients at s and at s + z, which are there anyway."""
        if self._at_s is not None and self.z is not None:
            there = gradients_of([layer.tensor for layer in self.layers])
            self.curvature = secant_curvature(self.layers, before, self.z, self._at_s, there)


def loss_and_gradient(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give a loss, detached, and its gradient in each tensor, summed over the processes.

    It is 0 in what the loss does not use, as a layer that layer drop leaves out.
    """
    own = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    return add_up([loss.detach(), *own])


def gradients_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give the gradient that each tensor holds, zeros where it has none: the loss does not use it."""
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]


@torch.no_grad()
def secant_curvature(
    layers: Sequence[PerturbedLayer],
    before: Sequence[Tensor],
    z: Sequence[Tensor],
    at_s: Sequence[Tensor],
    there: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Compute ``(g(s + z) - g(s)) . z_l`` and ``|z_l|^2``, two vectors [layers], while s + z is in force.

    The selection is by |s|: where z turns a score's sign, so does its gradient, for the same loss.

    Args:
        before: s of each layer.
        at_s, there: g(s) and g(s + z) of each layer.
    """
    products = []
    for layer, s, z_l, g, g_there in zip(layers, before, z, at_s, there, strict=True):
        turned = g_there if layer.mask is None else torch.where(layer.tensor * s < 0, -g_there, g_there)
        products.append(((turned - g) * z_l).sum())
    return torch.stack(products), torch.stack([z_l.square().sum() for z_l in z])


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
