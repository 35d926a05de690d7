"""Attacks on the inputs: PGD and FGSM to train against, AutoAttack to evaluate with.

Images are float tensors [B, C, H, W] in [0, 1]; labels are int64 [B].
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from s2ap_core.config import AttackNorm
from s2ap_core.masks.layers import constant_weights
from s2ap_core.modes import train_mode
from s2ap_core.training.ensemble.auto_pgd import AutoPGD, TargetedAutoPGD
from s2ap_core.training.ensemble.fab import TargetedFAB
from s2ap_core.training.ensemble.square import Square
from s2ap_core.training.folding import attacked
from s2ap_core.training.norms import ascent
from s2ap_core.training.replay import repeat

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")


def pgd(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    start: Tensor,
    eps: float,
    step: float,
    steps: int,
    norm: AttackNorm = "Linf",
) -> Tensor:
    """Ascend the loss by projected gradients in a ball around each image (PGD, Madry et al. 2018).

    One mask serves all steps; the model is attacked in eval mode and left in the mode it was in. Where the masked
    weights that are held constant ask for a gradient, the last step leaves the loss's in their ``grad``.

    Args:
        loss: maps logits [B, classes] to a scalar; it sums over images, so that each has its own gradient.
        start: where the ascent starts, of the shape of ``x``.
        eps, step: radius of the ball and length of a step in ``norm``, in units of the image's range.

    Returns:
        Adversarial images within ``eps`` of ``x`` and within [0, 1], detached.
    """
    move = ascent(norm, x, eps, step)

    def ascend(network: nn.Module, also: Sequence[Tensor], x_adv: Tensor) -> Tensor:
        x_adv = x_adv.detach().requires_grad_()
        value = loss(network(x_adv))
        grad, *others = torch.autograd.grad(value, [x_adv, *also], allow_unused=True, materialize_grads=True)
        for tensor, other in zip(also, others, strict=True):
            tensor.grad = other
        with torch.no_grad():
            return move(x_adv, grad)

    with attacked(model, x) as network:
        watched = [weight for weight in constant_weights(model) if weight.requires_grad]
        x_adv = repeat(partial(ascend, network, ()), start, steps - bool(watched))
        return (ascend(model, watched, x_adv) if watched else x_adv).detach()


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: AttackNorm = "Linf",
    attacks: Sequence[str] = AUTOATTACK,
    seed: int = 0,
    at_once: int = 1,
) -> Tensor:
    """Find which images a network classifies correctly under AutoAttack (Croce & Hein 2020, the authors' code).

    Its members make the authors' steps without the passes that change no outcome, see
    :mod:`s2ap_core.training.ensemble`.

    Args:
        model: a plain network; attacked in eval mode.
        attacks: the ensemble's members; the default is its ``standard`` version.
        seed: seeds the attacks, which would otherwise take the clock's.
        at_once: rows of a pass, if there are fewer images: it then takes several classes or queries of each.

    Returns:
        Boolean [B].
    """
    version = {"version": "standard"} if tuple(attacks) == AUTOATTACK else {"version": "custom"}
    members = {} if version["version"] == "standard" else {"attacks": list(attacks)}
    trained = [p for p in model.parameters() if p.requires_grad]
    devices = [x.device] if x.device.type == "cuda" else []
    # The attacks seed torch's global generator; its state is restored for the caller.
    with train_mode(model, False), torch.random.fork_rng(devices):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            ensemble = AutoAttack(model, norm=norm, eps=eps, seed=seed, device=x.device, **version, **members)
            _spare(ensemble, max(at_once, len(x)))
            # As in the standard version, which the ensemble sets up for itself alone.
            ensemble.apgd.n_restarts = 5 if norm == "L1" else 1
            ensemble.apgd_targeted.n_target_classes = 5 if norm == "L1" else 9
            ensemble.apgd.use_largereps = ensemble.apgd_targeted.use_largereps = norm == "L1"
            with torch.no_grad():
                others = model(x[:1]).shape[1] - 1
            for targeted in (ensemble.apgd_targeted, ensemble.fab):
                targeted.n_target_classes = min(targeted.n_target_classes, others)
            _, predicted = ensemble.run_standard_evaluation(x, y, batch_size=len(x))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
    robust: Tensor = predicted == y
    return robust


def _spare(ensemble: AutoAttack, at_once: int) -> None:
    """Let the members be ours, with the numbers that the ensemble gave its own."""
    ours = {"apgd": AutoPGD, "apgd_targeted": TargetedAutoPGD, "fab": TargetedFAB, "square": Square}
    for name, kind in ours.items():
        member = kind.__new__(kind)
        member.__dict__.update(getattr(ensemble, name).__dict__, at_once=at_once)
        setattr(ensemble, name, member)
