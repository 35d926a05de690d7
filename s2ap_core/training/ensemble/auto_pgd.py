"""Auto-PGD (Croce & Hein 2020), on rows that have not fallen yet and on several target classes at once."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from s2ap_core.training.ensemble.rows import NORMS, column, rounds, wrong_classes

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of logits [R, C], labels [R] and target classes [R]; a value for each row."""


class AutoPGD(APGDAttack):  # type: ignore[misc]  # the library is not typed
    """APGD on the cross-entropy; in L1 the library's own."""

    def attack_single_run(self, x: Tensor, y: Tensor, x_init: Tensor | None = None) -> tuple[Any, ...]:
        """Attack images once; what the library returns, without the losses that it does not use here."""
        if self.norm == "L1":
            whole: tuple[Any, ...] = super().attack_single_run(x, y, x_init)
            return whole
        rows = torch.arange(len(x), device=x.device)
        fallen, adversarial = _ascend(self, cross_entropy, x, y, y, rows, random_start(self, x))
        return adversarial, ~fallen, None, adversarial


class TargetedAutoPGD(APGDAttack_targeted):  # type: ignore[misc]  # the library is not typed
    """APGD on the targeted DLR loss; in L1 the library's own.

    Attributes:
        at_once: rows of a pass, of as many classes as fit. An image leaves all of them when one has felled it.
    """

    at_once = 1

    def perturb(self, x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Tensor:
        """Return adversarial images where one was found, and the others as they are."""
        if self.norm == "L1":
            whole: Tensor = super().perturb(x, y, x_init)
            return whole
        torch.manual_seed(self.seed)
        standing, classes = wrong_classes(self.model, x, y)
        found = x.clone()
        self.init_hyperparam(x)
        for ranks in rounds(self.n_target_classes, standing, self.at_once):
            image = standing.nonzero().flatten()
            # The noise of each class is drawn in turn, as the library draws it.
            start = torch.cat([random_start(self, x[image]) for _ in ranks])
            target = torch.cat([classes[image, rank] for rank in ranks])
            rows = image.repeat(len(ranks))
            fallen, adversarial = _ascend(self, targeted_dlr, x, y, target, rows, start)
            found[fallen] = adversarial[fallen]
            standing &= ~fallen
        return found


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Compute the cross-entropy of the labels [R]."""
    return F.cross_entropy(logits, y, reduction="none")


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Compute the targeted difference-of-logits ratio [R] (Croce & Hein 2020, equation 7)."""
    ordered = logits.sort(dim=1)[0]
    gap = logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])
    return -gap[:, 0] / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def random_start(attack: APGDAttack, x: Tensor) -> Tensor:
    """Draw a start on the ball's surface, from torch's global generator, which the attack has seeded."""
    draw = 2 * torch.rand(x.shape) - 1 if attack.norm == "Linf" else torch.randn(x.shape)
    start: Tensor = (x + attack.eps * _normalized(draw.to(x.device), attack.norm)).clamp(0, 1)
    return start


def _ascend(
    attack: APGDAttack, loss: Loss, x: Tensor, y: Tensor, target: Tensor, image: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Run Auto-PGD on rows, each of which leaves when its image falls.

    Args:
        attack: gives the model, norm, radius and the numbers of Auto-PGD.
        x, y: all images [B, ...] and their labels [B].
        target, image, start: of each row: the class it aims at, the position of its image in ``x``, where it starts.

    Returns:
        Which images fell [B], and where they did, shape of ``x``.
    """
    fallen, found = torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone()
    value, grad = _record(attack, loss, start, y[image], target, image, fallen, found)
    rows = {
        "image": image, "target": target, "centre": x[image], "now": start, "before": start, "grad": grad,
        "best": start, "best_grad": grad, "best_value": value, "checked_value": value,
        # The library compares the first loss with 0.
        "value": torch.zeros_like(value), "rises": torch.zeros_like(value), "reduced": torch.ones_like(value).bool(),
        "step": 2.0 * attack.eps * torch.ones_like(value),
    }  # fmt: skip
    since, period = 0, attack.n_iter_2
    for i in range(attack.n_iter):
        standing = ~fallen[rows["image"]]
        if not standing.all():
            rows = {name: values[standing] for name, values in rows.items()}
        if not len(rows["image"]):
            break
        rows["before"], rows["now"] = rows["now"], _stepped(attack, rows, momentum=i > 0)
        value, rows["grad"] = _record(
            attack, loss, rows["now"], y[rows["image"]], rows["target"], rows["image"], fallen, found
        )
        rows["rises"] = rows["rises"] + (value > rows["value"])
        rows["value"] = value
        better = value > rows["best_value"]
        rows["best_value"] = torch.where(better, value, rows["best_value"])
        for name, of in (("best", "now"), ("best_grad", "grad")):
            rows[name] = torch.where(column(better, x), rows[of], rows[name])
        since += 1
        if since == period:
            _halve(rows, rises_enough=attack.thr_decr * period)
            since, period = 0, max(period - attack.size_decr, attack.n_iter_min)
    return fallen, found


def _record(
    attack: APGDAttack, loss: Loss, points: Tensor, y: Tensor, target: Tensor, image: Tensor, fallen: Tensor,
    found: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute each row's loss and its gradient in the point; note, in place, the images that are misclassified."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = attack.model(points)
        value = loss(logits, y, target)
        (grad,) = torch.autograd.grad(value.sum(), points)
    wrong = logits.detach().argmax(1) != y
    found[image[wrong]] = points.detach()[wrong]
    fallen[image[wrong]] = True
    return value.detach(), grad


def _stepped(attack: APGDAttack, rows: dict[str, Tensor], *, momentum: bool) -> Tensor:
    """Take a step along the gradient, and three quarters of it with a quarter of the last one, within the ball."""
    centre, now, grad = rows["centre"], rows["now"], rows["grad"]
    direction = grad.sign() if attack.norm == "Linf" else _normalized(grad, "L2")
    share = 0.75 if momentum else 1.0
    ahead = _into_ball(attack, now + column(rows["step"], now) * direction, centre)
    return _into_ball(attack, now + (ahead - now) * share + (now - rows["before"]) * (1 - share), centre)


def _into_ball(attack: APGDAttack, points: Tensor, centre: Tensor) -> Tensor:
    if attack.norm == "Linf":
        return torch.minimum(torch.maximum(points, centre - attack.eps), centre + attack.eps).clamp(0, 1)
    moved = points - centre
    length = moved.flatten(1).norm(dim=1).clamp(max=attack.eps)
    return (centre + _normalized(moved, "L2") * column(length, moved)).clamp(0, 1)


def _normalized(points: Tensor, norm: str) -> Tensor:
    length = torch.linalg.vector_norm(points.flatten(1), NORMS[norm], dim=1)
    return points / (column(length, points) + 1e-12)


def _halve(rows: dict[str, Tensor], *, rises_enough: float) -> None:
    """Halve the steps of rows that rise too seldom or have not risen since, and go back to their best point."""
    idle = ~rows["reduced"] & (rows["checked_value"] >= rows["best_value"])
    reduced = (rows["rises"] <= rises_enough) | idle
    rows["reduced"], rows["checked_value"] = reduced, rows["best_value"]
    rows["step"] = torch.where(reduced, rows["step"] / 2, rows["step"])
    rows["rises"] = torch.zeros_like(rows["rises"])
    for name, best in (("now", "best"), ("grad", "best_grad")):
        rows[name] = torch.where(column(reduced, rows[name]), rows[best], rows[name])
