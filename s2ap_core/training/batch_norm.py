"""BatchNorm's running statistics, estimated anew under the mask in force."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_core.masks.layers import constant_mask
from s2ap_core.modes import train_mode


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set BatchNorm's running statistics, in place, to their mean over ``batches``.

    All other modules are in eval mode, so that dropout draws nothing. A network without BatchNorm is left alone.

    Args:
        model: masked or plain; its mask stays as it is.
        batches: images [B, C, H, W].
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with train_mode(model, False), constant_mask(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for x in batches:
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
