"""The stages of a run: pretrain -> prune -> finetune -> evaluate."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from s2ap_core.config import StageSettings
from s2ap_core.data import Dataset
from s2ap_core.distributed.group import wait
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.masks.layers import dense_weights, masked_layers, to_channels_last
from s2ap_core.masks.masking import fix_masks, scores
from s2ap_core.methods import build_method
from s2ap_core.methods.base import Attacked
from s2ap_core.modes import gpu_arithmetic
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import build_network, describe, load_checkpoint, save_checkpoint
from s2ap_core.runs.course import Until
from s2ap_core.runs.directory import TIMING, RunDirectory
from s2ap_core.runs.disk import check_space
from s2ap_core.runs.identity import check_config, check_unchanged
from s2ap_core.seeds import derive_seed, generator
from s2ap_core.training import replay
from s2ap_core.training.ball import Relative, score_layers, search_radius, weight_layers
from s2ap_core.training.epochs import Epochs, check_metrics
from s2ap_core.training.evaluation import Evaluation, evaluate
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import build_optimizer, normalize_score_gradient, searched_parameters
from s2ap_core.training.perturbation import Perturbation

log = logging.getLogger(__name__)


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
            keep_checkpoints: how many of the search's latest epochs keep their checkpoints, besides the selected
                one; None keeps all. Masks are always kept, and the result is the same.
        """
        self.run, self.config, self.data = run, run.config, data.to(device)
        self.device, self.callbacks, self.keep_checkpoints = device, callbacks, keep_checkpoints
        self.objective = build_objective(self.config.objective)
        self.method = build_method(self.config.method)
        self.method.image_shape = (data.channels, data.size, data.size)

    def all(self, until: Until = "end") -> None:
        """Run every stage of the method; each goes on where it stopped, and what is done is not repeated.

        Nothing is trained beyond the last stage that is evaluated; where none is evaluated, all stages are trained.

        Args:
            until: where to end: after ``pretrain``, ``warmup`` (the search's epochs without perturbation) or
                ``prune``, without evaluating anything, or at the ``end``. A run that ended there can be the
                beginning of others, see :func:`s2ap_core.runs.beginnings.continue_from`.

        Raises:
            InputError: if another process works on the run; if the images, the network or the code are not those that
                it began with; if the disk is too small, the loss diverges, or a file cannot be read or written.
        """
        arithmetic = gpu_arithmetic(tf32=False, deterministic=self.config.compute.deterministic)
        with lock.hold(self.run.path), arithmetic:
            self.run.remove_leftovers()
            check_unchanged(self.run, self.data)
            check_metrics(self.run)
            check_space(self.run, self.data, self.keep_checkpoints, until)
            self._all(until)

    def _all(self, until: Until) -> None:
        stages = course.trained(self.config, until)
        self.pretrain()
        if "prune" in stages:
            self.prune(self.config.minimizer.warmup if until == "warmup" else None)
        if "finetune" in stages:
            self.finetune()
        for stage in course.evaluated(self.config, until):
            self.evaluate(stage)

    def pretrain(self) -> None:
        """Train the dense network; for a method that prunes untrained weights, initialise them."""
        settings, config = self.config.pretrain, self.config
        header = describe(config, self.data, "pretrain", 0)
        if self._done("pretrain"):
            return
        if settings.checkpoint is not None:
            given = load_checkpoint(settings.checkpoint)
            if given.header["network"] != header["network"]:
                raise InputError(f"{settings.checkpoint}: another network than this config's; see its header")
            if given.header.get("fold") != header.get("fold"):  # it was trained on images that are tested here
                raise InputError(
                    f"{settings.checkpoint}: trained on data.options.fold = {given.header.get('fold')}, this run is on "
                    f"{header.get('fold')}; give a network of the same fold"
                )
            save_checkpoint(self.run.result("pretrain"), given.model, given.header)
            self._note(pretrain={"checkpoint": str(settings.checkpoint)})
            return
        model = self._initial_network(header)
        if not self.method.pretrained:
            save_checkpoint(self.run.result("pretrain"), model, header)
            self._note(pretrain={"epochs": 0})
            return
        self._train(self._loop("pretrain", settings, model, list(model.parameters())))

    def prune(self, epochs: int | None = None) -> None:
        """Search for the mask by Algorithm 1: for all epochs, or for the first ``epochs``, to be continued later.

        Where there is no search the method's first mask is validated and handed on.
        """
        if self._done("prune"):
            return
        minimizer = self.config.minimizer
        settings = self.config.prune.model_copy(update={"epochs": course.search_epochs(self.config)})
        model = load_checkpoint(self.run.result("pretrain"), self.device).model
        draws = generator("cpu", self.config.seed, "scores")
        self.method.start(model, draws, self._attacked(model), self.objective.loss)
        dense = dense_weights(model)
        log.info("%d layers are masked; dense stay %s", len(masked_layers(model)), ", ".join(dense) or "none")
        loop = self._loop("prune", settings, model, searched_parameters(model, settings))
        loop.method = self.method
        if minimizer.name != "none":
            layers = score_layers(model) if minimizer.name == "s2ap" else weight_layers(model)
            perturbation = Perturbation(
                model,
                layers,
                radius=search_radius(minimizer),
                eta_z=minimizer.eta_z,
                carry=minimizer.carry,
                source=minimizer.source,
                direction=minimizer.direction,
                subset=minimizer.subset,
                every=minimizer.every,
            )
            perturbed = course.perturbed(self.config)
            loop.perturb = lambda epoch: perturbation if epoch in perturbed else None
        if minimizer.update == "normalized":
            normalize_score_gradient(loop.optimizer, list(scores(model).values()))
        self._train(loop, epochs)

    def _attacked(self, model: nn.Module) -> Iterator[Attacked]:
        """Attack the training images that a method without a search takes gradients of: ``method.batches`` batches.

        Order and noise are functions of the seed and the stage; each process makes all of them.
        """
        seed, size = self.config.seed, self.config.prune.batch_size
        order, limit = derive_seed(seed, "prune", 0), self.config.method.batches * size
        for index, batch in enumerate(self.data.batches("train", size, shuffle=order, limit=limit)):
            noise = generator(batch.x.device, seed, "prune", 0, index)
            yield Attacked(batch.x, self.objective.attack(model, batch.x, batch.y, noise), batch.y)

    def finetune(self) -> None:
        """Train the weights under the mask that was found, with Algorithm 2 if ``finetune.awp``."""
        if self._done("finetune"):
            return
        settings = self.config.finetune
        model = fix_masks(load_checkpoint(self.run.result("prune"), self.device).model)
        loop = self._loop("finetune", settings, model, [p for p in model.parameters() if p.requires_grad])
        gamma = course.finetuning_gamma(self.config)
        if gamma is not None:
            perturbation = Perturbation(model, weight_layers(model), radius=Relative(gamma))
            loop.perturb = lambda epoch: perturbation
        self._train(loop)

    def evaluate(self, stage: str) -> Evaluation:
        """Evaluate what a stage handed on, into ``evals/STAGE.npz`` and ``results.json``."""
        wait()
        checkpoint = load_checkpoint(self.run.result(stage), self.device)
        started = time.monotonic()

        def on_batch(done: int, total: int) -> None:
            for callback in self.callbacks:
                callback.on_evaluated(done, total)

        # Options such as the fold choose the images of the test split; options of the training images are left out.
        chosen = {name: value for name, value in self.config.data.options.items() if name != "augment"}
        options = {"options": chosen} if chosen else {}
        evaluation = evaluate(
            checkpoint.model,
            self.data,
            self.config.evaluation,
            eps=self.config.objective.eps,
            norm=self.config.objective.norm,
            seed=self.config.seed,
            about={"stage": stage, "dataset": self.config.data.name, "sha256": checkpoint.header["sha256"], **options},
            file=self.run.path / "evals" / f"{stage}.npz",
            on_batch=on_batch,
        )
        for warning in evaluation.warnings():
            log.warning("%s: %s", stage, warning)
        if f"evaluate-{stage}" not in self.run.results():
            self.run.append("timing.csv", TIMING, [(f"evaluate-{stage}", "", round(time.monotonic() - started, 3))])
        self._note(**{f"evaluate-{stage}": evaluation.summary()})
        log.info("evaluated %s: %s", stage, evaluation.summary())
        return evaluation

    def _note(self, **entries: Any) -> None:
        """Write what a stage came to into ``results.json``, for the settings that ``config.toml`` says."""
        check_config(self.run)
        self.run.add_results(**entries)

    def _done(self, stage: str) -> bool:
        wait()
        return stage in self.run.results() and self.run.result(stage).exists()

    def _initial_network(self, header: Mapping[str, Any]) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(derive_seed(self.config.seed, "initialise"))
            model = build_network(header["network"])
        self.method.initialise(model, generator("cpu", self.config.seed, "initialise"))
        return model.to(self.device)

    def _loop(self, stage: str, settings: StageSettings, model: nn.Module, parameters: Sequence[nn.Parameter]) -> Loop:
        if self.device.startswith("cuda"):
            to_channels_last(model)  # what tensor cores read
        optimizer = build_optimizer(model, parameters, settings)
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

    def _train(self, loop: Loop, until: int | None = None) -> None:
        """Train a stage to its last epoch, or to epoch ``until``, from the last one that is on disk."""
        epochs = Epochs(self.run, loop, self.keep_checkpoints)
        resumed = epochs.resume()
        for callback in self.callbacks:
            callback.on_stage(loop)
        if loop.stage == "prune" and not resumed:
            epochs.end_epoch(seconds=0.0)  # Algorithm 1 starts with s* = s.
        last = loop.settings.epochs if until is None else min(until, loop.settings.epochs)
        for epoch in range(loop.epoch + 1, last + 1):
            loop.epoch = epoch
            started = time.monotonic()
            loop.train_epoch()
            epochs.end_epoch(seconds=time.monotonic() - started)
        replay.release()
        if loop.epoch < loop.settings.epochs:
            return
        wait()
        selected = epochs.selection.epoch
        if selected is None:
            raise InputError(f"{loop.stage}: no epoch has a finite validation loss; {loop.remedy()}")
        result = self.run.result(loop.stage)
        if not result.exists():  # of an epoch that is behind the state
            raise InputError(f"{result}: missing; remove {self.run.state(loop.stage)} to begin the stage anew")
        for warning in loop.method.warnings() if loop.method is not None and loop.epoch else ():
            log.warning("%s: %s", loop.stage, warning)
        self._note(**{loop.stage: {"epochs": loop.epoch, "selected_epoch": selected}})
