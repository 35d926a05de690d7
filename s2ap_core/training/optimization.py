"""What a stage's optimizer steps, and how far."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from s2ap_core.config import PruneSettings, StageSettings
from s2ap_core.masks.layers import score_masks


def cosine_lr(settings: StageSettings, epoch: int) -> float:
    """Compute the learning rate of this epoch (counted from 1): a half cosine from ``lr`` to 0."""
    return settings.lr * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def searched_parameters(model: nn.Module, settings: PruneSettings) -> list[nn.Parameter]:
    """Select what the search trains: scores, rates and the normalisation layers; all else is frozen, in place."""
    searched = list(nn.ModuleList(score_masks(model).values()).parameters())  # tied rates once
    if not settings.freeze_norm:
        norms = (m for m in model.modules() if isinstance(m, _NormBase | nn.LayerNorm | nn.GroupNorm))
        searched += [p for norm in norms for p in norm.parameters()]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in searched:
        parameter.requires_grad_(True)
    return searched


def is_finite(model: nn.Module) -> bool:
    """Whether there is no NaN or infinity in a network's parameters and buffers."""
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def normalize_score_gradient(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> None:
    """Line 10 as printed: scores step along their gradient's direction, without momentum or decay."""
    (group,) = optimizer.param_groups
    ours = {id(tensor) for tensor in tensors}
    group["params"] = [p for p in group["params"] if id(p) not in ours]
    optimizer.add_param_group({**group, "params": list(tensors), "momentum": 0.0, "weight_decay": 0.0})

    def normalize(*_: Any) -> None:
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for g in gradients:
            g.div_(norm.clamp_min(torch.finfo(g.dtype).tiny))

    optimizer.register_step_pre_hook(normalize)
