"""One iteration of a stage: Algorithm 1 of the paper on scores, Algorithm 2 on masked weights."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from s2ap_core.distributed.group import add_up_gradients
from s2ap_core.distributed.share import Share
from s2ap_core.masks.layers import constant_mask, one_mask
from s2ap_core.training.dropout import repeated_dropout
from s2ap_core.training.objectives import Objective
from s2ap_core.training.perturbation import Perturbation


@dataclass(frozen=True)
class Step:
    """What one iteration did: the adversarial images [B, C, H, W] and the loss that was differentiated.

    With several processes, this one's images, and the loss of the whole batch.
    """

    x_adv: Tensor
    loss: Tensor


def iterate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    share: Share | None = None,
    perturbation: Perturbation | None = None,
    penalty: Callable[[], Tensor] | None = None,
    clip: float | None = None,
    on_attacked: Callable[[Tensor], None] = lambda x_adv: None,
    on_gradient: Callable[[Callable[[], Tensor]], None] = lambda robust_loss: None,
) -> Step:
    """Run lines 3 to 11 of Algorithm 1 (S2AP); without ``perturbation`` those outside its orange box (Orig.).

    Args:
        generator: draws the attack's noise; dropout is seeded by the seed that it began with.
        share: which part of the batch ``x`` and ``y`` are; None means all of it.
        perturbation: z and its ball; on scores for S2AP, on masked weights for AWP.
        penalty: what the method adds to the loss it steps on (HARP); it has no gradient in s.
        clip: the norm that the gradient of all trained parameters is cut to where it is larger.
        on_attacked: for trackers, called with the adversarial images before anything changes.
        on_gradient: for trackers, called with L as a function of s when the scores have its gradient.
    """
    # Line 3: adversarial examples on the pruned model, one mask for all passes of the attack.
    watching = perturbation.watching_attack() if perturbation else nullcontext()
    with constant_mask(model), watching:
        x_adv = objective.attack(model, x, y, generator)
    on_attacked(x_adv)

    # Line 4: the robust loss L(s) = L(w * M(s, k)); of it, this process's term.
    share = Share(len(y)) if share is None else share

    def robust_loss(portion: float = 1.0) -> Tensor:
        n = min(max(2, round(portion * share.count)), share.count)  # BatchNorm needs two
        own = share.first(n)
        with repeated_dropout(x[:own], share, generator.initial_seed()):  # the same for z and the update
            return share.of_mean(objective.loss(model, x[:own], x_adv[:own], y[:own]), n)

    # Lines 6 to 9: z <- the layer-wise projected ascent step on L(s + z), then s <- s + z.
    part = partial(robust_loss, perturbation.subset if perturbation else 1.0)
    z = perturbation.applied(part, optimizer, generator.initial_seed()) if perturbation else nullcontext()
    with z, one_mask(model):
        # Line 10, the gradient of L(s + z).
        optimizer.zero_grad()
        loss = robust_loss()
        (loss if penalty is None else loss + share.of_mean(penalty(), share.count)).backward()
        loss = add_up_gradients(loss, trained_by(optimizer))
    # Line 11: leaving the block has restored s, so that the step below is taken from s.
    on_gradient(robust_loss)
    # Line 10, the update: s <- s - eta * gradient, by the method's own optimizer.
    if clip is not None:
        nn.utils.clip_grad_norm_(trained_by(optimizer), clip)
    if loss.device.type != "cpu" or loss.isfinite():  # a GPU would be waited for; whoever called sees the loss
        optimizer.step()
    return Step(x_adv, loss)


def trained_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Collect the parameters that an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
