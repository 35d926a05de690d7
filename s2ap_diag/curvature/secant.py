"""The secant curvature along a perturbation that no search uses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s2ap_core.masks.layers import one_mask
from s2ap_core.masks.masking import masks
from s2ap_core.modes import frozen_statistics
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.perturbation import Perturbation, gradients_of, loss_and_gradient, secant_curvature


class Probe(NamedTuple):
    """What is at s + z: the loss, the mask bits flipped, z by layer, ``(g(s + z) - g(s)) . z_l`` and ``|z_l|^2``."""

    loss: Tensor
    flips: int
    z: list[Tensor]
    products: Tensor
    squares: Tensor


def probe(
    model: nn.Module,
    gamma: float,
    robust_loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    seed: int = 0,
) -> Probe:
    """Go along g(s), the gradient that the scores hold, to the surface of gamma's ball; differentiate the loss there.

    One pass. Afterwards the model, its scores and their gradients are what they were.

    Args:
        robust_loss, optimizer, seed: as for :meth:`s2ap_core.training.perturbation.Perturbation.applied`.
    """
    layers, kept = score_layers(model), masks(model)
    perturbation = Perturbation(model, layers, radius=Relative(gamma), source="last")
    tensors = [layer.tensor for layer in layers]
    before = [tensor.detach().clone() for tensor in tensors]
    at_s = gradients_of(tensors)
    with perturbation.applied(robust_loss, optimizer, seed), frozen_statistics(model), one_mask(model):
        loss = robust_loss()
        loss, *there = loss_and_gradient(loss, tensors)
        flips = sum(int((mask ^ kept[name]).sum()) for name, mask in masks(model).items())
        assert perturbation.z is not None
        products, squares = secant_curvature(layers, before, perturbation.z, at_s, there)
    return Probe(loss, flips, perturbation.z, products, squares)
