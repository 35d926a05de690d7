"""A straightforward rendering of the published HYDRA search step, to compare ours with.

Written from its description, and from nothing of s2ap_core: every forward pass sorts all scores of every
layer anew; each step of the attack recomputes the clean logits with their graph; an iteration makes four
forward passes in train mode, one for the accuracy that it prints, then clean, adversarial, and clean
again. Mask, loss and gradient are those of our iteration where BatchNorm's statistics are equal.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SortedMask(torch.autograd.Function):
    """1 for the entries of a layer that stay, 0 for the ``int((1 - keep) * numel)`` smallest."""

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, keep: float) -> Tensor:
        order = magnitude.flatten().sort().indices  # not stable: among equal scores any may stay
        dropped = int((1 - keep) * magnitude.numel())
        mask = torch.empty_like(magnitude).flatten()
        mask[order[:dropped]] = 0
        mask[order[dropped:]] = 1
        return mask.view(magnitude.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Popup(nn.Module):
    """``w * mask(|s|)``, evaluated whenever the layer runs; scores start at sqrt(6 / fan_in) w / max|w|."""

    def __init__(self, weight: Tensor, keep: float) -> None:
        super().__init__()
        fan_in = weight.shape[1:].numel()
        self.scores = nn.Parameter((6 / fan_in) ** 0.5 * weight.detach() / weight.detach().abs().max())
        self.keep = keep

    def forward(self, weight: Tensor) -> Tensor:
        return weight * SortedMask.apply(self.scores.abs(), self.keep)


def attach(model: nn.Module, keep: float) -> nn.Module:
    """Score every Conv2d and Linear in place; freeze weights and biases, not BatchNorm."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", Popup(layer.weight, keep))
    return model


@dataclass(frozen=True)
class Trades:
    """TRADES with its l-inf adversary."""

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    beta: float = 6.0


def attack(model: nn.Module, x: Tensor, trades: Trades, generator: torch.Generator) -> Tensor:
    """Ascend the KL divergence from the clean prediction, in eval mode."""
    model.eval()
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    x_adv = x + 0.001 * noise
    for _ in range(trades.steps):
        x_adv.requires_grad_()
        loss = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="sum")
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + trades.step * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - trades.eps), x + trades.eps).clamp(0, 1)
    model.train()
    return x_adv


def step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    trades: Trades,
) -> tuple[float, float]:
    """Run one iteration of the search; return the loss and the clean accuracy that it prints."""
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    x_adv = attack(model, x, trades, generator)
    optimizer.zero_grad()
    natural = F.cross_entropy(model(x), y)
    robust = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="batchmean")
    loss = natural + trades.beta * robust
    loss.backward()
    optimizer.step()
    return loss.item(), accuracy
