"""Settings of the three stages: dense training, the search, finetuning."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from s2ap_core.config.base import Settings

MOST_EPOCHS = 1_000_000
"""Of a stage, whose files are counted before it begins."""


class StageSettings(Settings):
    """How a stage steps: by default SGD with momentum, its learning rate a half cosine from ``lr`` to 0, by epoch.

    Attributes:
        epochs: over the training split.
        lr: the largest learning rate.
        momentum: of SGD, or the first beta of AdamW.
        weight_decay: of the trained parameters.
        batch_size: images of a batch, of all processes together.
        optimizer: ``sgd``, or ``adamw``, whose first beta is ``momentum`` and whose decay is apart from the gradient.
        lr_warmup: epochs over which the learning rate first rises linearly to ``lr``; the cosine has the others.
        lr_step: whether the learning rate changes with each epoch or with each iteration.
        clip: the largest norm that the gradient of all trained parameters together is stepped with.
        decay_norms: false spares normalisation layers and biases the weight decay.
        select: which epoch a stage hands on: of the lowest robust loss or the highest robust accuracy on
            the validation split, or the last one.
    """

    epochs: int = Field(default=100, ge=1, le=MOST_EPOCHS)
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
    """The dense network.

    Attributes:
        checkpoint: a file of ours that takes the place of the training.
    """

    checkpoint: Path | None = None


class PruneSettings(StageSettings):
    """The mask search.

    Attributes:
        epochs: with 0 the mask that a search would start from is the result.
        freeze_norm: keep the normalisation layers' affine parameters as they were.
    """

    epochs: int = Field(default=20, ge=0, le=MOST_EPOCHS)
    freeze_norm: bool = False


class FinetuneSettings(StageSettings):
    """Training under the final mask.

    Attributes:
        awp: train by Algorithm 2, which perturbs the masked weights.
        gamma: with ``awp``, the radius relative to each layer's norm; None is the search's.
    """

    lr: float = Field(default=0.01, gt=0)
    awp: bool = False
    gamma: float | None = Field(default=None, gt=0)
