"""Robust objectives: an attack and a loss, kept apart so that several passes can use one adversarial batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import AttackNorm, ObjectiveSettings
from s2ap_core.config.parts import Registry, call
from s2ap_core.errors import InputError
from s2ap_core.modes import may_depend_on_batch
from s2ap_core.training.attacks import pgd
from s2ap_core.training.folding import attacked
from s2ap_core.training.norms import normal_start, uniform_start


@dataclass(frozen=True)
class Threat:
    """The adversary of training: radius and step length in its norm (in units of the image's range), steps."""

    eps: float
    step: float
    steps: int
    norm: AttackNorm = "Linf"


@dataclass(frozen=True)
class Objective:
    """What a stage minimises.

    Attributes:
        attack: ``(model, x, y, generator) -> x_adv``; reads masks and weights, changes nothing.
        loss: ``(model, x, x_adv, y) -> scalar``, the mean over the batch, differentiable.
    """

    name: str
    attack: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

    def autocast(self, precision: str) -> "Objective":
        """Return an objective whose matrix products are in ``bfloat16``; softmax, loss and parameters stay float32."""
        if precision != "bfloat16":
            return self

        def lower(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def call(model: nn.Module, x: Tensor, *args: Any) -> Tensor:
                # autocast computes softmax in float32 on GPUs alone: the logits are cast to float32 everywhere.
                raised = model.register_forward_hook(lambda module, inputs, logits: logits.float())
                try:
                    with torch.autocast(x.device.type, dtype=torch.bfloat16):
                        return function(model, x, *args).to(x.dtype)
                finally:
                    raised.remove()

            return call

        return Objective(self.name, lower(self.attack), lower(self.loss))


def clean(threat: Threat, beta: float) -> Objective:
    """Build the cross-entropy on clean images: no adversary."""
    del threat, beta
    return Objective("clean", lambda model, x, y, g: x, lambda model, x, x_adv, y: F.cross_entropy(model(x), y))


def pgd_at(threat: Threat, beta: float) -> Objective:
    """Build adversarial training with PGD on the cross-entropy, uniform start (Madry et al. 2018)."""
    del beta

    def attack(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return _cross_entropy_pgd(model, x, y, uniform_start(x, threat.eps, generator, threat.norm), threat)

    return Objective("pgd-at", attack, _adversarial_cross_entropy)


def fast_at(threat: Threat, beta: float) -> Objective:
    """Build fast adversarial training: one step of 1.25 eps from a uniform start, FGSM in Linf (Wong et al. 2020)."""
    del beta
    fgsm = Threat(threat.eps, 1.25 * threat.eps, steps=1, norm=threat.norm)

    def attack(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return _cross_entropy_pgd(model, x, y, uniform_start(x, fgsm.eps, generator, fgsm.norm), fgsm)

    return Objective("fast-at", attack, _adversarial_cross_entropy)


def trades(threat: Threat, beta: float) -> Objective:
    """Build TRADES (Zhang et al. 2019): ``CE(f(x), y) + beta KL(f(x) || f(x_adv))``, x_adv maximising the KL.

    In train mode it passes twice through the network. The published code makes four passes, so that its running
    statistics see three clean batches for each adversarial one; here they see one of each. With equal statistics the
    loss, its gradient and the mask are the same.
    """

    def attack(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        del y
        with attacked(model, x) as network:  # held over the steps, too
            with torch.no_grad():
                p_clean = F.softmax(network(x), dim=1)

            def divergence(logits: Tensor) -> Tensor:
                return F.kl_div(F.log_softmax(logits, dim=1), p_clean, reduction="sum")

            start = normal_start(x, 0.001, generator)
            return _pgd(model, x, divergence, start, threat)

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        log_p, log_p_adv = (F.log_softmax(logits, dim=1) for logits in _both(model, x, x_adv))
        # In logarithms: where a clean probability underflows, the gradient of p log p would be NaN.
        divergence = F.kl_div(log_p_adv, log_p, reduction="batchmean", log_target=True)
        return F.nll_loss(log_p, y) + beta * divergence

    return Objective("trades", attack, loss)


def mart(threat: Threat, beta: float) -> Objective:
    """Build MART (Wang et al. 2020): boosted cross-entropy on x_adv plus a KL weighted by misclassification."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return _cross_entropy_pgd(model, x, y, normal_start(x, 0.001, generator), threat)

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        logits, logits_adv = _both(model, x, x_adv)
        log_p, p_adv = F.log_softmax(logits, dim=1), F.softmax(logits_adv, dim=1)
        runner_up = p_adv.scatter(1, y[:, None], 0).amax(1)
        boosted = F.cross_entropy(logits_adv, y) - torch.log(1.0001 - runner_up).mean()
        divergence = F.kl_div((p_adv + 1e-12).log(), log_p, reduction="none", log_target=True).sum(1)
        weight = 1.0000001 - log_p.gather(1, y[:, None])[:, 0].exp()
        return boosted + beta * (divergence * weight).mean()

    return Objective("mart", attack, loss)


SHARED = 16_384
"""Pixels of clean images up to which adversarial ones share their pass on a CPU, whose caches more would leave."""


def _both(model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the logits of clean and of adversarial images, at one pass where it pays and none depend on others."""
    many = x.device.type == "cpu" and math.prod((len(x), *x.shape[2:])) > SHARED
    if many or may_depend_on_batch(model):
        return model(x), model(x_adv)
    logits = model(torch.cat([x, x_adv]))
    return logits[: len(x)], logits[len(x) :]


def _cross_entropy_pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat: Threat) -> Tensor:
    def cross_entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="sum")

    return _pgd(model, x, cross_entropy, start, threat)


def _pgd(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], start: Tensor, threat: Threat) -> Tensor:
    eps, step, steps, norm = threat.eps, threat.step, threat.steps, threat.norm
    return pgd(model, x, loss, start=start, eps=eps, step=step, steps=steps, norm=norm)


def _adversarial_cross_entropy(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    del x
    return F.cross_entropy(model(x_adv), y)


def build_objective(settings: ObjectiveSettings) -> Objective:
    """Build the objective that settings name.

    Raises:
        InputError: if there is none of that name, it takes no such option, or it raises or is no Objective.
    """
    threat = Threat(float(settings.eps), float(settings.step), settings.steps, settings.norm)
    what, factory = f"objective {settings.name}", OBJECTIVES.find(settings.name)
    objective = call(what, factory, threat, settings.beta, offered={}, options=settings.options)
    if not isinstance(objective, Objective):
        raise InputError(f"{what}: returns a {type(objective).__name__}; return an Objective")
    return objective


OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective", "--objective", {
    "trades": trades,
    "pgd-at": pgd_at,
    "mart": mart,
    "fast-at": fast_at,
    "clean": clean,
})  # fmt: skip
