"""The training loop that pretraining, search and finetuning share, and the callbacks that listen to it."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from s2ap_core.config import StageSettings
from s2ap_core.data import Batch, Dataset
from s2ap_core.data.base import Split, without_lone_image
from s2ap_core.distributed.batch_norm import Statistics, batch_statistics
from s2ap_core.distributed.group import add_up
from s2ap_core.distributed.share import Share, rows
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import constant_mask
from s2ap_core.methods import Method
from s2ap_core.modes import gpu_arithmetic, train_mode
from s2ap_core.seeds import derive_seed
from s2ap_core.training.batch_norm import reestimate_statistics
from s2ap_core.training.iteration import Step, iterate
from s2ap_core.training.objectives import Objective
from s2ap_core.training.optimization import build_schedule
from s2ap_core.training.perturbation import Perturbation

log = logging.getLogger(__name__)


DIVERGED = 1000.0
"""A training loss of so many times log(classes), which is that of guessing, never comes back.

TRADES starts within a few log(classes), and an untrained network under a sparse mask within some tens. To get
here the logits have to be wrong by hundreds.
"""


STATISTICS_BATCHES = 16
"""Training batches from which BatchNorm's statistics are estimated after a cut: a forward pass each, once an epoch."""


class Callback:
    """A listener of a stage. All hooks do nothing by default."""

    def on_stage(self, loop: "Loop") -> None:
        """Handle the beginning of a stage, before its first epoch or the first after a resume."""

    def on_attacked(self, loop: "Loop", x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        """Handle the adversarial images [B, C, H, W] of an iteration: they are made, nothing has changed yet."""

    def on_gradient(self, loop: "Loop", robust_loss: Callable[[], Tensor]) -> None:
        """Handle the gradient that the parameters hold, before it is cut or stepped on; the loss as a function of them.

        Under a perturbation it is that of L(s + z), while s is in force.
        """

    def on_iteration(self, loop: "Loop", step: Step) -> None:
        """Handle the end of an iteration."""

    def on_epoch(self, loop: "Loop") -> Sequence[tuple[int | str, str, float]]:
        """Handle the end of an epoch; return rows (iteration or "", metric, value) for metrics.csv."""
        return ()

    def on_recorded(self, loop: "Loop", rows: Sequence[tuple[int | str, str, float]]) -> None:
        """Handle the rows of an epoch, its own and those of all callbacks, once ``metrics.csv`` has them."""

    def on_evaluated(self, done: int, total: int) -> None:
        """Handle the progress of an evaluation, in images."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors from which :meth:`load_state_dict` goes on after an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned in this stage; at the beginning of one, nothing: ``{}``."""


@dataclass
class Selection:
    """Which epoch a stage hands on (lines 12 to 14 of Algorithm 1)."""

    rule: str
    best: float = math.inf
    epoch: int | None = None

    def offer(self, epoch: int, loss: float, robust_accuracy: float) -> bool:
        """Hold this epoch against the best so far, and return whether it is the best now."""
        criterion = {"robust-loss": loss, "robust-accuracy": -robust_accuracy, "last": -float(epoch)}[self.rule]
        if criterion < self.best:
            self.best, self.epoch = criterion, epoch
            return True
        return False


@dataclass
class Loop:
    """One stage being trained; callbacks read it.

    Attributes:
        perturbation: z of this epoch's iterations, None without one.
        epoch: counted from 1 while training; 0 is before the first.
        iteration: counted from 0 within an epoch.
        share: which part of the iteration's batch is in this process; None before the first, and for all of it.
        statistics: what BatchNorm normalises by where there are several processes.
        precision: of the matrix products of attack and loss.
        lr: the learning rate of the last iteration.
    """

    stage: str
    settings: StageSettings
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    data: Dataset
    seed: int
    method: Method | None = None
    perturb: Callable[[int], Perturbation | None] = lambda epoch: None
    perturbation: Perturbation | None = None
    epoch: int = 0
    iteration: int = 0
    share: Share | None = None
    statistics: Statistics = "sync"
    precision: str = "tf32"
    loss: float = math.nan
    lr: float = math.nan
    callbacks: Sequence[Callback] = field(default_factory=tuple)

    @property
    def iterations_per_epoch(self) -> int:
        """Number of batches that :meth:`train_epoch` makes."""
        positions = torch.arange(self.data.count("train"))
        return len(without_lone_image(positions.split(self.settings.batch_size)))

    @cached_property
    def schedule(self) -> LRScheduler:
        """The learning rate's course; made when it is first needed, as the optimizer's groups are settled then."""
        return build_schedule(self.optimizer, self.settings, self.iterations_per_epoch)

    def train_epoch(self) -> None:
        """Pass once over the training images: Algorithm 1 or 2, iteration by iteration."""
        self.perturbation = self.perturb(self.epoch)
        if self.perturbation is not None:
            self.perturbation.begin_epoch()
        schedule = self.schedule
        losses: list[Tensor] = []
        counts: list[int] = []
        order = derive_seed(self.seed, self.stage, self.epoch)
        batches = shared_batches(self.data, "train", self.settings.batch_size, shuffle=order, augment=True)
        with train_mode(self.model, True), batch_statistics(self.model, self.statistics):
            for self.iteration, (batch, share) in enumerate(batches):
                self.share = share
                if self.iteration and self.settings.lr_step == "iteration":
                    schedule.step()
                self.lr = self.optimizer.param_groups[0]["lr"]
                try:
                    step = self._iterate(batch.x, batch.y, share)
                except ValueError as error:
                    if share.count > 1:
                        raise
                    raise InputError(f"{self.stage}.batch_size: one image will not do ({error}); raise it") from error
                losses.append(step.loss)
                counts.append(share.count)
                # Reading a loss waits for its iteration; so on a GPU the one before is read while this one runs.
                self._check(losses[-1] if step.loss.device.type == "cpu" else losses[-2:][0])
                for callback in self.callbacks:
                    callback.on_iteration(self, step)
            self._check(losses[-1])
        schedule.step()  # of the epoch, or of its last iteration
        self.loss = sum(loss.item() * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)

    def _check(self, loss: Tensor) -> None:
        if not loss.item() < DIVERGED * math.log(max(self.data.classes, 2)):  # NaN, too
            where = f"at epoch {self.epoch}, iteration {self.iteration}"
            raise InputError(f"{self.stage}: the loss is {loss.item():.4g} {where}; {self.remedy()}")

    def _iterate(self, x: Tensor, y: Tensor, share: Share) -> Step:
        def on_attacked(x_adv: Tensor) -> None:
            for callback in self.callbacks:
                callback.on_attacked(self, x, x_adv, y)

        def on_gradient(robust_loss: Callable[[], Tensor]) -> None:
            for callback in self.callbacks:
                callback.on_gradient(self, robust_loss)

        with gpu_arithmetic(tf32=self.precision == "tf32"):
            step = iterate(
                self.model,
                x,
                y,
                objective=self.objective.autocast(self.precision),
                optimizer=self.optimizer,
                generator=share.generator(x.device, self.seed, self.stage, self.epoch, self.iteration),
                share=share,
                perturbation=self.perturbation,
                clip=self.settings.clip,
                penalty=partial(self.method.penalty, self.model, self.epoch - 1) if self.method else None,
                on_attacked=on_attacked,
                on_gradient=on_gradient,
            )
        if self.perturbation is not None:
            self.perturbation.radius.learn(self.perturbation.loss, step.loss)
        return step

    def remedy(self) -> str:
        """Say what to do about a loss that is no longer finite."""
        lower = f"the last good epoch is kept; lower {self.stage}.lr ({self.settings.lr})"
        if self.perturbation is None:
            return lower
        section = "minimizer" if self.stage == "prune" else "finetune"
        return f"{lower} or {section}.gamma ({self.perturbation.radius})"

    def candidate(self) -> nn.Module:
        """Return the network that this epoch offers: it is validated, and handed on if it is selected.

        In the search it is a copy of the network with the epoch's mask cut to exactly the budget. Where the cut
        changes the mask, BatchNorm's running statistics belong to the mask before; before the first epoch they are
        still the dense network's. In both cases they are estimated anew, on the same clean training images each
        time. A mask that kept the budget all along keeps the statistics that the search gathered under it. The
        network being trained stays as it is.
        """
        if self.method is None:
            return self.model
        cut = copy.deepcopy(self.model)
        if self.method.cut_to_budget(cut) or self.epoch == 0:
            size, order = self.settings.batch_size, derive_seed(self.seed, "statistics")
            batches = shared_batches(self.data, "train", size, shuffle=order, limit=STATISTICS_BATCHES * size)
            with batch_statistics(cut, "sync"):
                reestimate_statistics(cut, (batch.x for batch, _ in batches))
        return cut

    def validate(self, candidate: nn.Module) -> dict[str, float]:
        """Measure a network's robust loss, clean and robust accuracy on the validation split, in eval mode."""
        return robust_validation(candidate, self.objective, self.data, self.settings.batch_size, self.seed)


def shared_batches(data: Dataset, split: Split, batch_size: int, **options: Any) -> Iterator[tuple[Batch, Share]]:
    """Yield this process's part of each batch; ``options`` are those of :meth:`s2ap_core.data.Dataset.batches`.

    The last batch of training images is never a single image, see :func:`s2ap_core.data.base.without_lone_image`.
    """
    counts: list[int] = []

    def part(batches: Sequence[Tensor]) -> Sequence[Tensor]:
        whole = without_lone_image(batches) if split == "train" else batches
        counts.extend(map(len, whole))
        return rows(whole)

    for index, batch in enumerate(data.batches(split, batch_size, part=part, **options)):
        yield batch, Share.own(counts[index])


def robust_validation(
    model: nn.Module, objective: Objective, data: Dataset, batch_size: int, seed: int
) -> dict[str, float]:
    """Compute the objective on the validation split, its attack included; the same noise each time."""
    sums, images = torch.zeros(3, dtype=torch.float64), 0
    for index, (batch, share) in enumerate(shared_batches(data, "val", batch_size)):
        images += share.count
        if not len(batch.y):
            continue
        x_adv = objective.attack(model, batch.x, batch.y, share.generator(batch.x.device, seed, "validate", index))
        with torch.no_grad(), train_mode(model, False), constant_mask(model):
            loss = objective.loss(model, batch.x, x_adv, batch.y) * len(batch.y)
            clean = (model(batch.x).argmax(1) == batch.y).sum()
            robust = (model(x_adv).argmax(1) == batch.y).sum()
        sums += torch.stack([loss, clean, robust]).double().cpu()
    (sums,) = add_up([sums])
    loss_mean, clean_mean, robust_mean = (sums / images).tolist()
    return {"val_loss": loss_mean, "val_clean_accuracy": clean_mean, "val_robust_accuracy": robust_mean}
