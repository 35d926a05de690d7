"""What a stage's optimizer steps, and how far."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, SequentialLR

from s2ap_core.config import PruneSettings, StageSettings
from s2ap_core.masks.layers import score_masks


def build_optimizer(
    model: nn.Module, parameters: Sequence[nn.Parameter], settings: StageSettings
) -> torch.optim.Optimizer:
    """Make the optimizer of a stage.

    Args:
        model: the network that ``parameters`` belong to.
        parameters: what is trained; norms and biases come last where they are exempt from the decay.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if settings.weight_decay and not settings.decay_norms:
        spared = {id(p) for p in _norms_and_biases(model)}
        decayed = [p for p in parameters if id(p) not in spared]
        groups = [{"params": decayed}, {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, settings: StageSettings, iterations_per_epoch: int) -> LRScheduler:
    """Make the schedule of the learning rate: ``lr_warmup`` epochs of a linear rise, then a half cosine to 0.

    Step it after each epoch or after each iteration, as ``lr_step`` says. Of W steps of the rise step t,
    counted from 0, has (t + 1) / (W + 1) of the learning rate; of T steps of the cosine it has
    (1 + cos(pi t / T)) / 2. The cosine is torch's ``CosineAnnealingLR`` in closed form: torch makes each value from
    the one before, whose rounding errors add up.
    """
    unit = iterations_per_epoch if settings.lr_step == "iteration" else 1
    rise = settings.lr_warmup * unit
    fall = max(1, (settings.epochs - settings.lr_warmup) * unit)  # no epoch: a schedule that nothing steps
    linear = LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise) if rise else None
    cosine = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / fall)) / 2)
    return cosine if linear is None else SequentialLR(optimizer, [linear, cosine], milestones=[rise])


def searched_parameters(model: nn.Module, settings: PruneSettings) -> list[nn.Parameter]:
    """Select what the search trains: scores, rates and the normalisation layers; all else is frozen, in place."""
    searched = list(nn.ModuleList(score_masks(model).values()).parameters())  # tied rates once
    if not settings.freeze_norm:
        searched += _norms(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in searched:
        parameter.requires_grad_(True)
    return searched


def _norms(model: nn.Module) -> list[nn.Parameter]:
    norms = (m for m in model.modules() if isinstance(m, _NormBase | nn.LayerNorm | nn.GroupNorm))
    return [p for norm in norms for p in norm.parameters()]


def _norms_and_biases(model: nn.Module) -> list[nn.Parameter]:
    return [*_norms(model), *(p for name, p in model.named_parameters() if "bias" in name.rpartition(".")[2])]


def is_finite(model: nn.Module) -> bool:
    """Return whether there is no NaN or infinity in a network's parameters and buffers."""
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def normalize_score_gradient(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> None:
    """Normalise as line 10 is printed: scores step along their gradient's direction, without momentum or decay."""
    ours = {id(tensor) for tensor in tensors}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in ours]
    first = optimizer.param_groups[0]
    optimizer.add_param_group({**first, "params": list(tensors), "momentum": 0.0, "weight_decay": 0.0})

    def normalize(*_: Any) -> None:
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for g in gradients:
            g.div_(norm.clamp_min(torch.finfo(g.dtype).tiny))

    optimizer.register_step_pre_hook(normalize)
