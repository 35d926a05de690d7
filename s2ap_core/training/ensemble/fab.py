"""FAB (Croce & Hein 2020b), targeted: on images that have not fallen yet, on several target classes at once."""

import torch
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

from s2ap_core.training.ensemble.rows import NORMS, column, rounds, wrong_classes

PROJECTIONS = {"Linf": projection_linf, "L2": projection_l2, "L1": projection_l1}


class TargetedFAB(FABAttack_PT):  # type: ignore[misc]  # the library is not typed
    """FAB towards each of the likeliest wrong classes, without restarts.

    The library goes on to shrink what lies within the radius already; here an image leaves at that moment.

    Attributes:
        at_once: rows of a pass, of as many classes as fit. An image leaves all of them when one has felled it.
    """

    at_once = 1

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial images where one was found within the radius, and the others as they are."""
        standing, classes = wrong_classes(self.predict, x, y)
        found = x.clone()
        for ranks in rounds(self.n_target_classes, standing, self.at_once):
            image = standing.nonzero().flatten()
            target = torch.cat([classes[image, rank] for rank in ranks])
            standing &= ~self._approach(x, y, target, image.repeat(len(ranks)), found)
        return found

    def _approach(self, x: Tensor, y: Tensor, target: Tensor, image: Tensor, found: Tensor) -> Tensor:
        """Walk along the boundary between label and target; return which images fell [B], noted in ``found``.

        Args:
            target, image: of each row: the class it aims at, the position of its image in ``x``.
        """
        fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        points = x[image]
        for _ in range(self.n_iter):
            standing = ~fallen[image]
            if not standing.all():
                points, target, image = points[standing], target[standing], image[standing]
            if not len(image):
                break
            centre, label = x[image], y[image]
            points = self._step(points, centre, label, target)
            with torch.no_grad():
                wrong = self.predict(points).argmax(1) != label
            near = torch.linalg.vector_norm((points - centre).flatten(1), NORMS[self.norm], dim=1) <= self.eps
            found[image[wrong & near]] = points[wrong & near]
            fallen[image[wrong & near]] = True
            points = torch.where(column(wrong, points), centre + (points - centre) * self.beta, points)
        return fallen

    def _step(self, points: Tensor, centre: Tensor, label: Tensor, target: Tensor) -> Tensor:
        """Project point and image onto the linearised boundary, and go to a mean of the two, a little beyond."""
        leaf = points.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.predict(leaf)
            difference = (logits.gather(1, target[:, None]) - logits.gather(1, label[:, None]))[:, 0]
            (grad,) = torch.autograd.grad(difference.sum(), leaf)
        normal, rows = grad.flatten(1), len(points)
        offset = (normal * points.flatten(1)).sum(1) - difference.detach()
        both = torch.cat([points.flatten(1), centre.flatten(1)])
        moves = PROJECTIONS[self.norm](both, normal.repeat(2, 1), offset.repeat(2))
        length = torch.linalg.vector_norm(moves, NORMS[self.norm], dim=1).clamp(min=1e-8)
        share = column((length[:rows] / (length[:rows] + length[rows:])).clamp(0, self.alpha_max), points)
        own, from_centre = (part.view_as(points) for part in moves.split(rows))
        ahead: Tensor = (points + self.eta * own) * (1 - share) + (centre + self.eta * from_centre) * share
        return ahead.clamp(0, 1)
