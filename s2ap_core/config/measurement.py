"""Settings of what is read and measured: evaluation, tracking."""

from typing import Literal

from pydantic import Field

from s2ap_core.config.base import AttackNorm, Radius, Settings


class EvaluationSettings(Settings):
    """Robust accuracy on the test split.

    Attributes:
        stages: which results are evaluated: the dense network, the raw mask, the finetuned network. A run
            trains as far as these need it.
        attack: ``autoattack`` (standard), ``apgd`` (its APGD-CE and targeted APGD), ``pgd-50``, or ``none``.
        norm, eps: None is the training's.
        n: number of test images, the first ones; None is all.
        batch_size: images that are attacked at once. Where fewer are left, a pass of AutoAttack takes several classes
            or queries of each, up to so many rows.
    """

    stages: list[Literal["pretrain", "prune", "finetune"]] = Field(default=["pretrain", "prune", "finetune"])
    attack: Literal["autoattack", "apgd", "pgd-50", "none"] = "autoattack"
    norm: AttackNorm | None = None
    eps: Radius | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=250, ge=1)


class TrackingSettings(Settings):
    """What is read while the search runs, and where it is shown.

    Attributes:
        metrics: names of :data:`s2ap_diag.curvature.tracking.TRACKERS`.
        every: iterations from one reading to the next; 0 reads nothing.
        recipe: ``paper`` is power iteration, anew each time; ``warm`` is Lanczos from the last eigenvector, to a
            residual of ``tolerance``.
        tolerance: the residual that a warm reading stops at.
        iterations: of a reading, with ``warm`` at most; one product each, and with ``paper`` one more.
        images: the first so many of the batch; None is all of it.
        batch_norm: the statistics that BatchNorm normalises with, a reading in each; one of them is half the cost.
        spectrum: lambda_max over ``all`` scores as the paper defines it, over those of ``live`` channels, which
            keep a weight, or both; where no channel is dead both cost no more than one.
        by_layer: read the perturbation's flips, its reach and the curvature along it of each layer too.
        along_z: without a perturbation in the search, read the curvature along one of this gamma, at one pass.
        tensorboard: write all of ``metrics.csv`` for TensorBoard too, into the run's ``tensorboard`` folder; an extra.
    """

    metrics: list[str] = Field(default=["curvature"])
    every: int = Field(default=0, ge=0)
    recipe: Literal["warm", "paper"] = "warm"
    iterations: int = Field(default=10, ge=1)
    tolerance: float = Field(default=0.1, gt=0)
    images: int | None = Field(default=None, ge=1)
    batch_norm: list[Literal["running", "batch"]] = Field(default=["running", "batch"])
    spectrum: list[Literal["all", "live"]] = Field(default=["all", "live"], min_length=1)
    by_layer: bool = False
    along_z: float | None = Field(default=None, gt=0)
    tensorboard: bool = False
