"""Settings of what is pruned and against whom: the images, the network, the adversary."""

from fractions import Fraction
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from s2ap_core.config.base import AttackNorm, NetworkNorm, Options, Radius, Settings


class DataSettings(Settings):
    """Which images.

    Attributes:
        name: of :data:`s2ap_core.data.DATASETS`, or an .npz file, a folder of class folders, or a factory,
            ``FILE.py:FACTORY``.
        root: the folder that the published files lie in.
        options: the data set's own; those that are trained on have ``augment``, true or false, in the place of what is
            usual for them.
    """

    name: str = "digits"
    root: Path | None = None
    options: dict[str, bool | int | str] = Field(default={})


class NetworkSettings(Settings):
    """The network; image size and channels follow from the data.

    Attributes:
        name: of :data:`s2ap_core.models.NETWORKS`, or a factory, ``FILE.py:FACTORY``.
        width: of the first stage; None is the published width.
        norm_affine: whether the normalisation layers have affine parameters.
        norm: ``group`` has GroupNorm in the place of BatchNorm, in networks that have a choice.
        options: of a network of one's own, ``FILE.py:FACTORY``.
    """

    name: str = "resnet18"
    width: int | None = Field(default=None, ge=1)
    norm_affine: bool = True
    norm: NetworkNorm = "batch"
    options: Options = Field(default={})


class ObjectiveSettings(Settings):
    """The robust loss and the adversary that it is trained against.

    Attributes:
        name: of :data:`s2ap_core.training.objectives.OBJECTIVES`, or a factory, ``FILE.py:FACTORY``.
        beta: factor of the robust part, in objectives that have two.
        norm: of the ball that the adversary stays in.
        eps, step: its radius and a step's length in this norm, images in [0, 1]; the defaults are Linf's.
        steps: of the attack in training.
        options: of an objective of one's own, ``FILE.py:FACTORY``.
    """

    name: str = "trades"
    beta: float = Field(default=6.0, ge=0)
    norm: AttackNorm = "Linf"
    eps: Radius = Field(default=Fraction(8, 255), ge=0)
    step: Radius = Field(default=Fraction(2, 255), ge=0)
    steps: int = Field(default=10, ge=1)
    options: Options = Field(default={})

    @field_validator("eps", "step")
    @classmethod
    def _linf_stays_within_the_range_of_an_image(cls, value: Fraction, given: ValidationInfo) -> Fraction:
        if given.data.get("norm", "Linf") == "Linf" and value > 1:
            raise ValueError("above 1, the range of an image")
        return value
