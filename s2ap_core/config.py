"""A run's settings: typed, checked, written as TOML."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from s2ap_core.errors import InputError


class MethodSettings(BaseModel):
    """Settings of a method; those that a method does not read have no effect on it.

    Attributes:
        keep: fraction of the maskable weights that stays.
        penalty: HARP's c, the factor of its penalty on keeping too much.
        rate_init: where HARP's layer-wise keep rates start: ``uniform`` at the larger of 0.1 and ``keep``
            (the published ``010_uni``), ``target`` at ``keep``, or one keep rate for each layer; none above 0.99.
        init: RLTH's untrained weights: ``signed-constant`` or ``kaiming``.
        flops_reduction: how many times fewer FLOPs channel pruning leaves, instead of ``keep``.
        batches: adversarial training batches of ``prune.batch_size`` that gradients are taken of for a mask without a
            search.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = "hydra"
    keep: float = Field(default=0.1, gt=0, le=1)
    penalty: float = Field(default=0.01, ge=0)
    rate_init: Literal["uniform", "target"] | list[Annotated[float, Field(gt=0, le=1)]] = "uniform"
    init: Literal["signed-constant", "kaiming"] = "signed-constant"
    flops_reduction: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    batches: int = Field(default=4, ge=1)


_LARGEST_EXPONENT = 308
"""Of a radius, as of a float: an exact fraction of 1e999999999 would take all memory."""


def _fraction(value: Any) -> Fraction:
    """Read an exact fraction: 8/255 is no float, and radii are kept as the field writes them."""
    exponent = re.search(r"e([+-]?\d+)", value.lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or (exponent and abs(int(exponent[1])) > _LARGEST_EXPONENT):
        raise ValueError("not a number or a fraction such as 8/255")
    try:
        return Fraction(value)
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError("not a number or a fraction such as 8/255") from error


AttackNorm = Literal["Linf", "L2", "L1"]
"""The norms of the threat models: how far an adversary's images may be from the given ones."""


Radius = Annotated[Fraction, BeforeValidator(_fraction), PlainSerializer(str)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Settings):
    """Which images: a name of :data:`s2ap_core.data.DATASETS`, the folder they lie in, its own options.

    Those that are trained on have an option ``augment``, true or false, in the place of what is usual for them.
    """

    name: str = "digits"
    root: Path | None = None
    options: dict[str, bool | int | str] = {}


class NetworkSettings(_Settings):
    """A name of :data:`s2ap_core.models.NETWORKS`; image size and channels follow from the data.

    Attributes:
        width: of the first stage; None is the published width.
        norm_affine: whether BatchNorm has affine parameters.
    """

    name: str = "resnet18"
    width: int | None = Field(default=None, ge=1)
    norm_affine: bool = True


class ObjectiveSettings(_Settings):
    """The robust loss and the adversary that it is trained against.

    Attributes:
        norm: of the ball that the adversary stays in.
        eps, step: its radius and a step's length in this norm, images in [0, 1]; the defaults are Linf's.
    """

    name: str = "trades"
    beta: float = Field(default=6.0, ge=0)
    norm: AttackNorm = "Linf"
    eps: Radius = Field(default=Fraction(8, 255), ge=0)
    step: Radius = Field(default=Fraction(2, 255), ge=0)
    steps: int = Field(default=10, ge=1)

    @field_validator("eps", "step")
    @classmethod
    def _linf_stays_within_the_range_of_an_image(cls, value: Fraction, given: ValidationInfo) -> Fraction:
        if given.data.get("norm", "Linf") == "Linf" and value > 1:
            raise ValueError("above 1, the range of an image")
        return value


class StageSettings(_Settings):
    """How a stage steps: by default SGD with momentum, its learning rate a half cosine from ``lr`` to 0, by epoch.

    Attributes:
        optimizer: ``sgd``, or ``adamw``, whose first beta is ``momentum`` and whose decay is apart from the gradient.
        lr_warmup: epochs over which the learning rate first rises linearly to ``lr``; the cosine has the others.
        lr_step: whether the learning rate changes with each epoch or with each iteration.
        clip: the largest norm that the gradient of all trained parameters together is stepped with.
        decay_norms: false spares normalisation layers and biases the weight decay.
        select: which epoch a stage hands on: of the lowest robust loss or the highest robust accuracy on
            the validation split, or the last one.
    """

    epochs: int = Field(default=100, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    lr_warmup: int = Field(default=0, ge=0)
    lr_step: Literal["epoch", "iteration"] = "epoch"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norms: bool = True
    clip: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=128, ge=1)
    select: Literal["robust-loss", "robust-accuracy", "last"] = "robust-loss"


class PretrainSettings(StageSettings):
    """The dense network; a ``checkpoint`` of ours takes the place of the training."""

    checkpoint: Path | None = None


class PruneSettings(StageSettings):
    """The mask search; ``freeze_norm`` keeps the normalisation layers' affine parameters as they were.

    With 0 epochs the mask that a search would start from is the result.
    """

    epochs: int = Field(default=20, ge=0)
    freeze_norm: bool = False


class FinetuneSettings(StageSettings):
    """Training under the final mask; with ``awp`` by Algorithm 2, at the search's gamma unless given."""

    lr: float = Field(default=0.01, gt=0)
    awp: bool = False
    gamma: float | None = Field(default=None, gt=0)


class MinimizerSettings(_Settings):
    """What the search minimises besides the loss.

    Attributes:
        name: ``none`` (Orig.), ``s2ap`` (perturbs scores), ``awp`` (perturbs masked weights).
        gamma: radius of each layer's ball relative to the layer's norm; ``flips`` takes the smallest radius that flips
            a share of the mask, ``rise`` follows a relative rise of the loss.
        flips: with ``flips``, entries that leave each layer's mask, over those kept; as many enter it.
        rise: with ``rise``, the wished (L(s + z) - L(s)) / L(s).
        warmup: epochs without perturbation at the start.
        eta_z: ascent step: ``inf`` puts each layer on its sphere; ``lr`` or a number is line 6 as printed.
        carry: keep z from one iteration to the next, the literal reading of line 6.
        source, subset, every: cheaper ways to z, see :class:`s2ap_core.training.perturbation.Perturbation`.
        direction: where z goes; all but ``gradient`` are controls, see the same.
        update: ``method`` steps with the method's optimizer, ``normalized`` divides the scores' gradient by
            its norm and steps without momentum and decay, which is line 10 as printed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=True, ser_json_inf_nan="constants")

    name: Literal["none", "s2ap", "awp"] = "none"
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["flips", "rise"] = 0.001
    flips: float = Field(default=0.003, gt=0, le=1)
    rise: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    warmup: int = Field(default=5, ge=0)
    eta_z: Annotated[float, Field(gt=0)] | Literal["lr"] = float("inf")
    carry: bool = False
    source: Literal["pass", "last", "attack", "momentum"] = "pass"
    direction: Literal["gradient", "reversed", "shuffled", "random"] = "gradient"
    subset: float = Field(default=1.0, gt=0, le=1)
    every: int = Field(default=1, ge=1)
    update: Literal["method", "normalized"] = "method"

    @model_validator(mode="after")
    def _the_perturbation_can_be_made(self) -> Self:
        if self.name == "awp" and (self.source, self.direction) != ("pass", "gradient"):
            raise ValueError("source and direction are of scores: awp perturbs weights along the gradient of a pass")
        if self.name == "awp" and isinstance(self.gamma, str):
            raise ValueError(f"gamma = {self.gamma} is of scores: awp perturbs weights by a number times their norm")
        if self.gamma == "flips" and (self.carry or self.eta_z != float("inf")):
            raise ValueError("gamma = flips is a radius along one direction: leave carry and eta_z at their defaults")
        ascends = self.source == "pass" and self.direction == "gradient" and self.eta_z == float("inf")
        if self.gamma == "rise" and not (ascends and self.subset == 1 and not self.carry):
            raise ValueError("gamma = rise needs L(s): leave source, direction, subset, carry, eta_z at their defaults")
        return self


class EvaluationSettings(_Settings):
    """Robust accuracy on the test split.

    Attributes:
        stages: which results are evaluated: the dense network, the raw mask, the finetuned network. A run
            trains as far as these need it.
        attack: ``autoattack`` (standard), ``apgd`` (its APGD-CE and targeted APGD), ``pgd-50``, or ``none``.
        norm, eps: None is the training's.
        n: number of test images, the first ones; None is all.
    """

    stages: list[Literal["pretrain", "prune", "finetune"]] = ["pretrain", "prune", "finetune"]
    attack: Literal["autoattack", "apgd", "pgd-50", "none"] = "autoattack"
    norm: AttackNorm | None = None
    eps: Radius | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=250, ge=1)


class TrackingSettings(_Settings):
    """What is read while the search runs.

    Attributes:
        metrics: names of :data:`s2ap_diag.curvature.tracking.TRACKERS`.
        every: iterations from one reading to the next; 0 reads nothing.
        recipe: ``paper`` starts each reading anew; ``warm`` starts from the last eigenvector and stops at a residual
            of ``tolerance``.
        iterations: of power iteration in a reading, with ``warm`` at most; one product each, and one more.
        images: the first so many of the batch; None is all of it.
        batch_norm: the statistics that BatchNorm normalises with, a reading in each; one of them is half the cost.
        spectrum: lambda_max over ``all`` scores as the paper defines it, over those of ``live`` channels, which
            keep a weight, or both; where no channel is dead both cost no more than one.
        by_layer: read the perturbation's flips and the curvature along it of each layer too.
        along_z: without a perturbation in the search, read the curvature along one of this gamma, at two passes.
    """

    metrics: list[str] = ["curvature"]
    every: int = Field(default=0, ge=0)
    recipe: Literal["warm", "paper"] = "warm"
    iterations: int = Field(default=10, ge=1)
    tolerance: float = Field(default=0.1, gt=0)
    images: int | None = Field(default=None, ge=1)
    batch_norm: list[Literal["running", "batch"]] = ["running", "batch"]
    spectrum: list[Literal["all", "live"]] = Field(default=["all", "live"], min_length=1)
    by_layer: bool = False
    along_z: float | None = Field(default=None, gt=0)


class ComputeSettings(_Settings):
    """How a run computes.

    Attributes:
        precision: of the matrix products in training: ``tf32`` is float32 with TensorFloat-32 on GPUs that have it,
            torch's default for convolutions; ``bfloat16`` runs attack and loss under autocast. Scores, weights and
            their updates, validation, evaluation and curvature are float32 with all of them.
        deterministic: a GPU's convolutions give the same bits each time, so that a resumed run is the uninterrupted
            one; on a CPU it always is.
    """

    precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    deterministic: bool = False


class DistributedSettings(_Settings):
    """How several processes work on one run.

    Attributes:
        batch_norm: BatchNorm in train mode normalises over the whole batch (``sync``), which makes the result
            independent of the number of processes, or over each process's own images (``local``).
    """

    batch_norm: Literal["sync", "local"] = "sync"


class Config(_Settings):
    """Everything that a run depends on, but for the device."""

    title: str = ""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    method: MethodSettings = MethodSettings()
    minimizer: MinimizerSettings = MinimizerSettings()
    pretrain: PretrainSettings = PretrainSettings()
    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    distributed: DistributedSettings = DistributedSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="before")
    @classmethod
    def _the_training_s_norm_is_not_said_twice(cls, settings: Any) -> Any:
        # Runs of before said it: they are of one setting with those that follow the training's.
        objective, evaluation = settings.get("objective", {}), settings.get("evaluation", {})
        if not (isinstance(objective, dict) and isinstance(evaluation, dict)):
            return settings
        said = evaluation.get("norm") == objective.get("norm", "Linf")
        return settings | {"evaluation": {k: v for k, v in evaluation.items() if k != "norm"}} if said else settings

    def to_toml(self) -> str:
        """Write the resolved settings; what is None is left out, as TOML has no null."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def parse_config(settings: dict[str, Any], source: str) -> Config:
    """Check settings; ``source`` is named where one does not fit.

    Raises:
        InputError: naming the key, its value and what is allowed.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function", "constrained")))
        got = "" if first["type"] == "extra_forbidden" else f" (got {_shown(first['input'])})"
        what = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{source}: {key}: {what}{got}") from error


def _shown(value: Any) -> str:
    """Write a value as Python writes it, its middle left out where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-50:]}"
