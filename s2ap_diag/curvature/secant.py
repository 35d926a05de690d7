"""The secant curvature along a perturbation that no search uses."""

from collections.abc import Callable

import torch
from torch import Tensor

from s2ap_core.distributed.group import add_up_gradients
from s2ap_core.masks.layers import one_mask
from s2ap_core.modes import frozen_statistics
from s2ap_core.training.perturbation import Perturbation


def probe(
    perturbation: Perturbation, robust_loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, seed: int = 0
) -> Tensor:
    """Make z, differentiate the loss at s + z, and return that loss; the scores' gradients are cleared.

    Afterwards ``perturbation`` has its z, L(s) and curvature; the model is as it was.

    Args:
        robust_loss, optimizer, seed: as for :meth:`s2ap_core.training.perturbation.Perturbation.applied`.
    """
    tensors, model = [layer.tensor for layer in perturbation.layers], perturbation.model
    perturbation.reads_curvature = True
    with perturbation.applied(robust_loss, optimizer, seed), frozen_statistics(model), one_mask(model):
        loss = robust_loss()
        for tensor, gradient in zip(tensors, torch.autograd.grad(loss, tensors), strict=True):
            tensor.grad = gradient
        loss = add_up_gradients(loss, tensors)
    for tensor in tensors:
        tensor.grad = None
    return loss.detach()
