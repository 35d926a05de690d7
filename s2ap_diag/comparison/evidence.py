"""What is checked of a finished run, read once: evaluations, curves, sharpness, budget."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel
from torch import nn

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.export import exported_flops, image_shape
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.layers import masked_layers
from s2ap_core.masks.masking import masks
from s2ap_core.models import NETWORKS
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import build_checkpoint, check_header, select_masks
from s2ap_core.runs.course import Stage
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import flat
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.comparison.cost import Cost, cost
from s2ap_diag.comparison.metrics import Seed
from s2ap_diag.reading.results import SHARPNESS, Run, validated
from s2ap_diag.verification import allowed_density, wrong_counts

FREE = (
    *("title", "seed", "data.root", "data.options.fold", "pretrain.checkpoint", "compute", "tracking", "evaluation"),
    *("minimizer", "finetune.awp", "finetune.gamma"),
)
"""Settings in which the seeds and arms of one setting may differ."""


class Eigenvalue(BaseModel):
    """How far the eigenvalues of ``sharpness.json`` have converged; None where an older version left it out."""

    residual: float
    residual_live: float | None = None
    converged: bool
    converged_live: bool = True
    dead_share: float | None = None
    lambda_max_live: float | None = None
    batch_norm: str | None = None


@dataclass(frozen=True)
class Budget:
    """What a mask keeps.

    Attributes:
        kept, allowed: of the weights, or of the FLOPs for a method that counts them, in (0, 1].
        cost: for a method that counts FLOPs, those of the network that ``export`` would write.
        violation: what is wrong, empty where nothing is.
    """

    kept: float
    allowed: float
    violation: str
    cost: Cost


@dataclass(frozen=True)
class Evidence:
    """A run, and of its files what conditions look at, as far as they are there.

    Attributes:
        evaluations: by stage, of the networks that were trained.
        sharpness: None where it was not measured.
        budget: of the last network's mask, None of a dense one.
    """

    run: Run
    evaluations: Mapping[Stage, Evaluation]
    sharpness: Eigenvalue | None
    budget: Budget | None

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.run.config

    @property
    def unit(self) -> Seed:
        """Seed and fold: what statistics count."""
        return seed_of(self.run)

    @cached_property
    def arm(self) -> str:
        """What sets the run apart from others of its setting; Orig. reads none of the minimizer's settings."""
        name = course.arm(self.config)
        return (
            name if name == "orig" else f"{name} {self.config.minimizer.model_dump_json()} {self.config.finetune.gamma}"
        )

    @cached_property
    def setting(self) -> str:
        """All settings that its seeds and arms share, as text that is the same for runs of one setting."""
        settings = flat(self.config.model_dump(mode="json"))
        shared = {
            key: value for key, value in settings.items() if not f"{key}.".startswith(tuple(f"{f}." for f in FREE))
        }
        return json.dumps([course.trained(self.config), shared], sort_keys=True)

    def tracked(self, metric: str) -> dict[int, float]:
        """Read a metric of the search by epoch, finite values only; empty where it was not tracked.

        Raises:
            InputError: if ``metrics.csv`` is missing or damaged.
        """
        return self.run.curve(metric) if (self.run.path / "metrics.csv").is_file() else {}

    def result(self, stage: Stage) -> Path:
        """Return where the network lies that a stage handed on."""
        return RunDirectory(self.run.path, self.config).result(stage)


def gather(run: Run) -> Evidence:
    """Read all that conditions look at; of a run that goes on, what it has so far.

    Raises:
        InputError: if a file is missing or damaged.
    """
    evaluations = {}
    for stage in course.evaluated(run.config):
        if stage == "pretrain" and not course.epochs(run.config, "pretrain") and not run.config.pretrain.checkpoint:
            continue  # untrained weights, which a method prunes as they are
        evaluation = run.evaluation(stage) if f"evaluate-{stage}" in run.results else None
        if evaluation is not None:
            evaluations[stage] = evaluation
    if "prune" in run.results:
        run.curve("val_loss")
    return Evidence(run, evaluations, _eigenvalue(run), _budget(run))


def by_setting(evidence: Sequence[Evidence]) -> list[dict[str, list[Evidence]]]:
    """Group pruned runs by setting, and within it by arm."""
    grouped: dict[str, dict[str, list[Evidence]]] = {}
    for one in evidence:
        if one.budget is not None:
            grouped.setdefault(one.setting, {}).setdefault(one.arm, []).append(one)
    return list(grouped.values())


def _eigenvalue(run: Run) -> Eigenvalue | None:
    record = run.sharpness
    return None if record is None else validated(Eigenvalue, record, run.path / SHARPNESS, "measure it again")


def _budget(run: Run) -> Budget | None:
    if "prune" not in run.results:
        return None
    config = run.config
    reduction = course.flops_reduction(config)
    file = RunDirectory(run.path, config).result(course.trained(config)[-1])
    if reduction is not None:
        return _budget_of_flops(run, file, reduction)
    tensors, header = load_tensors(file)
    try:
        check_header(header)
        bits = select_masks(tensors, header["keep"])
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    spent = cost(header["network"], bits)
    asked = {**header, "keep": config.method.keep, "keep_layers": config.method.keep_layers}
    findings = wrong_counts(file, asked, bits, uniform=course.uniform(config))
    wrong = [str(finding).partition(": ")[2] for finding in findings]
    return Budget(spent.density, allowed_density(asked, bits), wrong[0] if wrong else "", spent)


def _budget_of_flops(run: Run, file: Path, reduction: float) -> Budget:
    tensors, header = load_tensors(file)
    network = header.get("network")
    name = network.get("name") if isinstance(network, Mapping) else None
    if isinstance(name, str) and not NETWORKS.knows(name):
        raise InputError(
            f"{run.path}: its budget is of FLOPs, which no code of {name} is run to count here; "
            f"`s2ap-diag export {shlex.quote(str(run.path))} --network {name} --out FILE` counts them"
        )
    checkpoint = build_checkpoint(file, tensors, header)
    kept = _flops_kept(checkpoint.model, image_shape(header["network"]))
    spent = replace(cost(header["network"], masks(checkpoint.model)), flops=kept)
    over = kept > 1 / reduction
    return Budget(kept, 1 / reduction, f"{reduction:g}x fewer FLOPs were asked for" if over else "", spent)


def _flops_kept(model: nn.Module, images: tuple[int, int, int]) -> float:
    """Divide the FLOPs that channel masks leave by those of the dense network."""
    bits, layers = masks(model), masked_layers(model)
    kept = {name: layer.by_input(bits[layer.tensor("weight")]).flatten(1).any(1) for name, layer in layers.items()}
    dense, left = exported_flops(model, images, kept)
    return left / dense
