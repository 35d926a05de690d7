"""The stages of a run, pretrain -> prune -> finetune -> evaluate, and the loop that three of them share."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from s2ap_core import lock
from s2ap_core.batch_norm import reestimate_statistics
from s2ap_core.checkpoints import build_network, describe, load_checkpoint, save_checkpoint
from s2ap_core.config import PruneSettings, StageSettings
from s2ap_core.data import Batch, Dataset
from s2ap_core.data.base import Split, without_lone_image
from s2ap_core.disk import check_space
from s2ap_core.distributed import Share, Statistics, add_up, batch_statistics, rows, wait
from s2ap_core.errors import InputError
from s2ap_core.evaluation import Evaluation, evaluate
from s2ap_core.identity import check_unchanged
from s2ap_core.iteration import Step, iterate
from s2ap_core.methods import Method, build_method
from s2ap_core.modes import train_mode
from s2ap_core.objectives import Objective, build_objective
from s2ap_core.runs import METRICS, TIMING, RunDirectory, load_tensors, save_masks, save_tensors
from s2ap_core.scores import (
    constant_mask,
    fix_masks,
    load_plain_state_dict,
    masks,
    plain_state_dict,
    score_masks,
    scores,
)
from s2ap_core.seeds import derive_seed, generator
from s2ap_core.sharpness import Perturbation, score_layers, weight_layers

log = logging.getLogger(__name__)

TRAINED_STAGES = ("pretrain", "prune", "finetune")

DIVERGED = 1000.0
"""A training loss of so many times log(classes), which is that of guessing, never comes back.

TRADES starts within a few log(classes), and an untrained network under a sparse mask within some tens. To get
here the logits have to be wrong by hundreds.
"""

STATISTICS_BATCHES = 16
"""Training batches that the statistics of a mask that was cut are estimated on: a forward pass each, in an epoch."""

Until = Literal["pretrain", "warmup", "prune", "end"]


class Callback:
    """What may listen to a stage. All hooks do nothing by default."""

    def on_stage(self, loop: "Loop") -> None:
        """Before the first epoch of a stage, or the first after a resume."""

    def on_attacked(self, loop: "Loop", x: Tensor, x_adv: Tensor, y: Tensor) -> None:
        """The adversarial images [B, C, H, W] of an iteration are made, nothing has changed yet."""

    def on_iteration(self, loop: "Loop", step: Step) -> None:
        """An iteration has ended."""

    def on_epoch(self, loop: "Loop") -> Sequence[tuple[int | str, str, float]]:
        """An epoch has ended; what is returned, (iteration or "", metric, value), goes into metrics.csv."""
        return ()

    def on_evaluated(self, done: int, total: int) -> None:
        """Part of an evaluation is done; in images."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`load_state_dict` goes on after an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave."""


@dataclass
class Selection:
    """Which epoch a stage hands on (lines 12 to 14 of Algorithm 1)."""

    rule: str
    best: float = math.inf
    epoch: int | None = None

    def offer(self, epoch: int, loss: float, robust_accuracy: float) -> bool:
        """Whether this epoch is the best so far."""
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
    precision: str = "float32"
    loss: float = math.nan
    callbacks: Sequence[Callback] = field(default_factory=tuple)

    @property
    def iterations_per_epoch(self) -> int:
        """Number of batches that :meth:`train_epoch` makes."""
        positions = torch.arange(self.data.count("train"))
        return len(without_lone_image(positions.split(self.settings.batch_size)))

    def train_epoch(self) -> None:
        """One pass over the training images: Algorithm 1 or 2, iteration by iteration."""
        self.perturbation = self.perturb(self.epoch)
        if self.perturbation is not None:
            self.perturbation.begin_epoch()
        set_lr(self.optimizer, cosine_lr(self.settings, self.epoch))
        losses: list[Tensor] = []
        counts: list[int] = []
        order = derive_seed(self.seed, self.stage, self.epoch)
        batches = shared_batches(self.data, "train", self.settings.batch_size, shuffle=order, augment=True)
        with train_mode(self.model, True), batch_statistics(self.model, self.statistics):
            for self.iteration, (batch, share) in enumerate(batches):
                self.share = share
                try:
                    step = self._iterate(batch.x, batch.y, share)
                except ValueError as error:
                    if share.count > 1:
                        raise
                    raise InputError(f"{self.stage}.batch_size: one image will not do ({error}); raise it") from error
                losses.append(step.loss)
                counts.append(share.count)
                # Reading a loss waits for its iteration: on a GPU for the one before, while this one is under way.
                self._check(losses[-2:][0] if step.loss.is_cuda else step.loss)
                for callback in self.callbacks:
                    callback.on_iteration(self, step)
            self._check(losses[-1])
        self.loss = sum(loss.item() * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)

    def _check(self, loss: Tensor) -> None:
        if not loss.item() < DIVERGED * math.log(max(self.data.classes, 2)):  # NaN, too
            where = f"at epoch {self.epoch}, iteration {self.iteration}"
            raise InputError(f"{self.stage}: the loss is {loss.item():.4g} {where}; {self.remedy()}")

    def _iterate(self, x: Tensor, y: Tensor, share: Share) -> Step:
        def on_attacked(x_adv: Tensor) -> None:
            for callback in self.callbacks:
                callback.on_attacked(self, x, x_adv, y)

        return iterate(
            self.model,
            x,
            y,
            objective=self.objective.autocast(self.precision),
            optimizer=self.optimizer,
            generator=share.generator(x.device, self.seed, self.stage, self.epoch, self.iteration),
            share=share,
            perturbation=self.perturbation,
            penalty=partial(self.method.penalty, self.model, self.epoch - 1) if self.method else None,
            on_attacked=on_attacked,
        )

    def remedy(self) -> str:
        """What to do about a loss that has left all bounds."""
        lower = f"the last good epoch is kept; lower {self.stage}.lr ({self.settings.lr})"
        if self.perturbation is None:
            return lower
        section = "minimizer" if self.stage == "prune" else "finetune"
        return f"{lower} or {section}.gamma ({self.perturbation.gamma})"

    def candidate(self) -> nn.Module:
        """What this epoch has to offer: it is validated, and handed on if it is selected.

        In the search, a copy of the network with the epoch's mask at exactly the budget. Where the cut changed
        the mask, BatchNorm's running statistics belong to another one, as before the first epoch, when they are
        still the dense network's: they are estimated anew on the same clean training images each time. A mask
        that kept the budget all along keeps the statistics that the search gathered under it. The network being
        trained stays as it is.
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
        """Robust loss, clean and robust accuracy of a network on the validation split, in eval mode."""
        return robust_validation(candidate, self.objective, self.data, self.settings.batch_size, self.seed)


def shared_batches(data: Dataset, split: Split, batch_size: int, **options: Any) -> Iterator[tuple[Batch, Share]]:
    """Of each batch what belongs to this process; ``options`` are those of :meth:`s2ap_core.data.Dataset.batches`.

    Of the training images no last batch is one image alone, see :func:`s2ap_core.data.base.without_lone_image`.
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
    """The objective on the validation split, its attack included; the same noise each time."""
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


def cosine_lr(settings: StageSettings, epoch: int) -> float:
    """The learning rate of this epoch (counted from 1): a half cosine from ``lr`` to 0."""
    return settings.lr * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class Stages:
    """A run's stages; each reads the files of the one before it and nothing else."""

    def __init__(
        self,
        run: RunDirectory,
        data: Dataset,
        *,
        device: str = "cpu",
        callbacks: Sequence[Callback] = (),
        keep_checkpoints: int | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            keep_checkpoints: the search's latest so many epochs keep their checkpoints, besides the selected
                one; None keeps all. Masks are always kept, and the result is the same.
        """
        self.run, self.config, self.data = run, run.config, data.to(device)
        self.device, self.callbacks, self.keep_checkpoints = device, callbacks, keep_checkpoints
        self.objective = build_objective(self.config.objective)
        self.method = build_method(self.config.method)
        self.method.image_shape = (data.channels, data.size, data.size)

    def all(self, until: Until = "end") -> None:
        """Every stage of the method, each continued where it stopped; what is done is not repeated.

        The last stage to be evaluated is the last to be trained; where none is, all are trained.

        Args:
            until: where to end: after ``pretrain``, ``warmup`` (the search's epochs without perturbation) or
                ``prune``, without evaluating anything, or at the ``end``. A run that went so far can be the
                beginning of others, see :func:`s2ap_core.shared.continue_from`.

        Raises:
            InputError: if another process is at it, the images, the network or the code are not those that the
                run began with, the disk is too small, the loss diverges, or a file cannot be read or written.
        """
        with lock.hold(self.run.path):
            self.run.remove_leftovers()
            check_unchanged(self.run, self.data)
            check_space(self.run, self.data, self.keep_checkpoints)
            self._all(until)

    def _all(self, until: Until) -> None:
        wanted = self.config.evaluation.stages or TRAINED_STAGES
        self.pretrain()
        if until in ("warmup", "prune") or (until == "end" and not {"prune", "finetune"}.isdisjoint(wanted)):
            self.prune(self.config.minimizer.warmup if until == "warmup" else None)
        if until != "end":
            return
        if "finetune" in wanted and self.method.finetuned:
            self.finetune()
        for stage in self.config.evaluation.stages:
            if self.result(stage).exists():
                self.evaluate(stage)

    def result(self, stage: str) -> Path:
        """The checkpoint that a stage hands on."""
        return self.run.checkpoint("pretrain" if stage == "pretrain" else f"{stage}-best")

    def pretrain(self) -> None:
        """Train the dense network; a method that prunes untrained weights gets those instead."""
        settings, config = self.config.pretrain, self.config
        header = describe(config, self.data, "pretrain", 0)
        if self._done("pretrain"):
            return
        if settings.checkpoint is not None:
            given = load_checkpoint(settings.checkpoint)
            if given.header["network"] != header["network"]:
                raise InputError(f"{settings.checkpoint}: another network than this config's; see its header")
            save_checkpoint(self.result("pretrain"), given.model, given.header)
            self.run.add_results(pretrain={"checkpoint": str(settings.checkpoint)})
            return
        model = self._initial_network(header)
        if not self.method.pretrained:
            save_checkpoint(self.result("pretrain"), model, header)
            self.run.add_results(pretrain={"epochs": 0})
            return
        self._train(self._loop("pretrain", settings, model, list(model.parameters())))

    def prune(self, epochs: int | None = None) -> None:
        """Search for the mask: Algorithm 1; all of it, or its first ``epochs`` to be continued later."""
        if self._done("prune"):
            return
        settings, minimizer = self.config.prune, self.config.minimizer
        model = load_checkpoint(self.result("pretrain"), self.device).model
        self.method.attach(model, generator("cpu", self.config.seed, "scores"))
        loop = self._loop("prune", settings, model, searched_parameters(model, settings))
        loop.method = self.method
        if minimizer.name != "none":
            layers = score_layers(model) if minimizer.name == "s2ap" else weight_layers(model)
            perturbation = Perturbation(
                model,
                layers,
                gamma=minimizer.gamma,
                eta_z=minimizer.eta_z,
                carry=minimizer.carry,
                single_step=minimizer.single_step,
                subset=minimizer.subset,
                every=minimizer.every,
            )
            loop.perturb = lambda epoch: perturbation if epoch > minimizer.warmup else None
        if minimizer.update == "normalized":
            normalize_score_gradient(loop.optimizer, list(scores(model).values()))
        self._train(loop, epochs)

    def finetune(self) -> None:
        """Train the weights under the mask that was found, with Algorithm 2 if ``finetune.awp``."""
        if self._done("finetune"):
            return
        settings = self.config.finetune
        model = fix_masks(load_checkpoint(self.result("prune"), self.device).model)
        loop = self._loop("finetune", settings, model, [p for p in model.parameters() if p.requires_grad])
        if settings.awp:
            gamma = settings.gamma or self.config.minimizer.gamma
            perturbation = Perturbation(model, weight_layers(model), gamma=gamma)
            loop.perturb = lambda epoch: perturbation
        self._train(loop)

    def evaluate(self, stage: str) -> Evaluation:
        """Evaluate what a stage handed on, into ``evals/STAGE.npz`` and ``results.json``."""
        wait()
        checkpoint = load_checkpoint(self.result(stage), self.device)
        started = time.monotonic()

        def on_batch(done: int, total: int) -> None:
            for callback in self.callbacks:
                callback.on_evaluated(done, total)

        found = evaluate(
            checkpoint.model,
            self.data,
            self.config.evaluation,
            eps=self.config.objective.eps,
            seed=self.config.seed,
            about={"stage": stage, "dataset": self.config.data.name, "sha256": checkpoint.header["sha256"]},
            file=self.run.path / "evals" / f"{stage}.npz",
            on_batch=on_batch,
        )
        for warning in found.warnings():
            log.warning("%s: %s", stage, warning)
        if f"evaluate-{stage}" not in self.run.results():
            self.run.append("timing.csv", TIMING, [(f"evaluate-{stage}", "", round(time.monotonic() - started, 3))])
        self.run.add_results(**{f"evaluate-{stage}": found.summary()})
        log.info("evaluated %s: %s", stage, found.summary())
        return found

    def _done(self, stage: str) -> bool:
        wait()
        return stage in self.run.results() and self.result(stage).exists()

    def _initial_network(self, header: Mapping[str, Any]) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(derive_seed(self.config.seed, "initialise"))
            model = build_network(header["network"])
        self.method.initialise(model, generator("cpu", self.config.seed, "initialise"))
        return model.to(self.device)

    def _loop(self, stage: str, settings: StageSettings, model: nn.Module, parameters: Sequence[nn.Parameter]) -> Loop:
        if self.device.startswith("cuda"):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what tensor cores read
        optimizer = torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        return Loop(
            stage,
            settings,
            model,
            self.objective,
            optimizer,
            self.data,
            self.config.seed,
            callbacks=self.callbacks,
            statistics=self.config.distributed.batch_norm,
            precision=self.config.compute.precision,
        )

    def _train(self, loop: Loop, epochs: int | None = None) -> None:
        """All epochs of a stage, or the first so many, from the last one that is on disk."""
        stage, selection = loop.stage, Selection(loop.settings.select)
        if self.run.state(stage).exists():
            self._restore(loop, selection)
            self._drop_checkpoints(loop)
        else:
            self.run.truncate("metrics.csv", self._metrics_before(stage))
        for callback in self.callbacks:
            callback.on_stage(loop)
        if stage == "prune" and not self.run.state(stage).exists():
            self._end_epoch(loop, selection, seconds=0.0)  # Algorithm 1 starts with s* = s.
        last = loop.settings.epochs if epochs is None else min(epochs, loop.settings.epochs)
        for epoch in range(loop.epoch + 1, last + 1):
            loop.epoch = epoch
            started = time.monotonic()
            loop.train_epoch()
            self._end_epoch(loop, selection, seconds=time.monotonic() - started)
        if loop.epoch < loop.settings.epochs:
            return
        wait()
        if selection.epoch is None:
            raise InputError(f"{stage}: no epoch has a finite validation loss; {loop.remedy()}")
        for warning in loop.method.warnings() if loop.method is not None else ():
            log.warning("%s: %s", stage, warning)
        self.run.add_results(**{stage: {"epochs": loop.epoch, "selected_epoch": selection.epoch}})

    def _end_epoch(self, loop: Loop, selection: Selection, seconds: float) -> None:
        """Validate what the epoch offers, save it and the epoch, and commit both with the state for a resume."""
        if not is_finite(loop.model):  # its last step may have been too far
            raise InputError(f"{loop.stage}: the network holds nan or inf after epoch {loop.epoch}; {loop.remedy()}")
        candidate = loop.candidate()
        validation = loop.validate(candidate)
        header = describe(self.config, self.data, loop.stage, loop.epoch)
        if loop.method is not None:
            if loop.epoch:
                loop.method.end_epoch(loop.model, loop.epoch - 1)
            save_masks(self.run.masks(loop.epoch), masks(loop.model), header)
            save_checkpoint(self.run.checkpoint(f"prune-epoch-{loop.epoch:03d}"), loop.model, header)
        if selection.offer(loop.epoch, validation["val_loss"], validation["val_robust_accuracy"]):
            offered = header if loop.method is None else {**header, "at_budget": True}
            save_checkpoint(self.result(loop.stage), candidate, offered)
        rows: list[tuple[Any, ...]] = [("", name, value) for name, value in validation.items()]
        if loop.epoch:
            rows += [("", "train_loss", loop.loss), ("", "lr", loop.optimizer.param_groups[0]["lr"])]
        for callback in self.callbacks:
            rows += callback.on_epoch(loop)
        readings = ", ".join(f"{name} {value:.4g}" for at, name, value in rows if at == "")
        log.info("%s: epoch %d of %d: %s", loop.stage, loop.epoch, loop.settings.epochs, readings)
        length = self.run.append("metrics.csv", METRICS, [(loop.stage, loop.epoch, *row) for row in rows])
        self._save_state(loop, selection, header, length)
        self._drop_checkpoints(loop)
        if loop.epoch:
            self.run.append("timing.csv", TIMING, [(loop.stage, loop.epoch, round(seconds, 3))])

    def _drop_checkpoints(self, loop: Loop) -> None:
        """Remove the checkpoints that are not to be kept of epochs that are committed."""
        if self.keep_checkpoints is None or loop.stage != "prune":
            return
        for epoch in range(loop.epoch - self.keep_checkpoints + 1):
            self.run.checkpoint(f"prune-epoch-{epoch:03d}").unlink(missing_ok=True)

    def _save_state(self, loop: Loop, selection: Selection, header: Mapping[str, Any], metrics: int) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in plain_state_dict(loop.model).items()}
        for index, state in loop.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        carried = loop.perturbation.z if loop.perturbation is not None and loop.perturbation.carry else None
        tensors |= {f"z.{index}": z for index, z in enumerate(carried or ())}
        for index, callback in enumerate(self.callbacks):
            tensors |= {f"callback.{index}.{name}": value for name, value in callback.state_dict().items()}
        save_tensors(
            self.run.state(loop.stage),
            tensors,
            {
                **header,
                "metrics_bytes": metrics,
                "selection": [selection.best, selection.epoch],
                "method": loop.method.state_dict() if loop.method is not None else {},
            },
        )

    def _metrics_before(self, stage: str) -> int:
        """Bytes of metrics.csv that belong to the stages before this one."""
        found = 0
        for before in TRAINED_STAGES[: TRAINED_STAGES.index(stage)]:
            path = self.run.state(before)
            if path.exists():
                with _fitting(path):
                    found = max(found, load_tensors(path)[1]["metrics_bytes"])
        return found

    def _restore(self, loop: Loop, selection: Selection) -> None:
        path = self.run.state(loop.stage)
        tensors, state = load_tensors(path)
        with _fitting(path):
            self._load_state(loop, selection, tensors, state)
            self.run.truncate("metrics.csv", state["metrics_bytes"])

    def _load_state(
        self, loop: Loop, selection: Selection, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        grouped: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "z": {}, "callback": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            grouped[group][rest] = tensor
        load_plain_state_dict(loop.model, grouped["model"])
        optimizer = loop.optimizer.state_dict()
        trained = [p for group in loop.optimizer.param_groups for p in group["params"]]
        for name, tensor in grouped["optimizer"].items():
            index, _, entry = name.partition(".")
            if tensor.shape != trained[int(index)].shape:
                raise ValueError(f"{name} is of another shape than its parameter")
            optimizer["state"].setdefault(int(index), {})[entry] = tensor
        loop.optimizer.load_state_dict(optimizer)
        loop.epoch = int(state["epoch"])
        if grouped["z"] and (perturbation := loop.perturb(loop.epoch)) is not None:
            perturbation.z = [grouped["z"][str(i)].to(self.device) for i in range(len(grouped["z"]))]
        selection.best, selection.epoch = state["selection"]
        if loop.method is not None:
            loop.method.load_state_dict(state["method"])
        for position, callback in enumerate(self.callbacks):
            own = {n.partition(".")[2]: t for n, t in grouped["callback"].items() if n.startswith(f"{position}.")}
            callback.load_state_dict(own)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Name the file whose content, though its checksum is right, is not that of a stage's state."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not a state of this run ({error}); remove it to begin the stage anew") from error


def searched_parameters(model: nn.Module, settings: PruneSettings) -> list[nn.Parameter]:
    """What the search trains: scores, rates and the normalisation layers; all else is frozen, in place."""
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
