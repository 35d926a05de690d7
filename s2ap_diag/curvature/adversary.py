"""The images and the adversary that a checkpoint's sharpness is measured with."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from s2ap_core.config import ObjectiveSettings, parse_config
from s2ap_core.data import Dataset
from s2ap_core.data.base import without_lone_image
from s2ap_core.distributed.share import gather_in_order, own_items
from s2ap_core.files.code import name_by_user
from s2ap_core.modes import gpu_arithmetic, statistics
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.seeds import generator
from s2ap_core.training.objectives import Objective
from s2ap_diag.curvature.hessian import BatchNormMode

AdversarialBatch = tuple[Tensor, Tensor, Tensor]


def describe_adversary(settings: ObjectiveSettings, *, recrafted: bool = False) -> str:
    """Say in words what made the adversarial examples, and whether anew at each step."""
    if settings.name == "clean":
        return "none (clean cross-entropy)"
    made = "made anew at each step" if recrafted else "held fixed"
    norm = "" if settings.norm == "Linf" else f" in {settings.norm}"
    return f"{settings.name}, PGD-{settings.steps}{norm}, eps {settings.eps}, step {settings.step}, examples {made}"


def own_objective(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the settings of the objective that a checkpoint was made with of its file; empty where it says none.

    Raises:
        InputError: naming the file, if there can be no such objective.
    """
    own = checkpoint.header.get("objective") or {}
    parse_config({"objective": own}, f"{checkpoint.path}: its header")
    return dict(own)


def objective_of(checkpoint: Checkpoint, name: str | None = None, eps: str | None = None) -> ObjectiveSettings:
    """Give the objective that a checkpoint was made with, its name or radius changed where they are given.

    Raises:
        InputError: as :func:`own_objective`, or naming the options, if there can be no such objective.
    """
    name_by_user(name)
    asked = {key: value for key, value in {"name": name, "eps": eps}.items() if value is not None}
    return parse_config({"objective": own_objective(checkpoint) | asked}, "--objective/--eps").objective


@dataclass(frozen=True)
class Adversary:
    """Makes adversarial batches (x, x_adv, y) for a model, the same noise for every model."""

    objective: Objective
    seed: int

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], index: int = 0) -> AdversarialBatch:
        x, y = batch[0], batch[-1]
        rng = generator(x.device, self.seed, "adversary", index)
        with gpu_arithmetic(tf32=False):
            return x, self.objective.attack(model, x, y, rng), y

    def batches(self, model: nn.Module, data: Dataset, images: int, batch_size: int) -> list[AdversarialBatch]:
        """Draw training images without augmentation by the seed, and make their adversarial examples.

        As in training, a last image alone joins the batch before it: see
        :func:`s2ap_core.data.base.without_lone_image`.
        Several processes of a run attack every ``world``-th batch each; all of them get all batches.
        """
        drawn = list(data.batches("train", batch_size, shuffle=self.seed, limit=images, part=without_lone_image))
        own = [self(model, (batch.x, batch.y), i)[1].cpu() for i, batch in own_items(list(enumerate(drawn)))]
        return [
            (batch.x, x_adv.to(batch.x.device), batch.y)
            for batch, x_adv in zip(drawn, gather_in_order(own), strict=True)
        ]


def needs_reestimation(checkpoint: Checkpoint, batch_norm: BatchNormMode) -> bool:
    """Return whether the running statistics are still the dense network's, as before the search."""
    header = checkpoint.header
    before_search = header.get("stage") == "prune" and header.get("epoch") == 0 and not header.get("at_budget")
    return statistics(checkpoint.model, batch_norm) == "running" and before_search
