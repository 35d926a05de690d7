"""Settings of the mask search: the method, and what the search minimises."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from s2ap_core.config.base import Options, Settings


class MethodSettings(Settings):
    """Settings of a method; those that a method does not read have no effect on it.

    Attributes:
        name: of :data:`s2ap_core.methods.METHODS`, or a factory, ``FILE.py:FACTORY``.
        keep: fraction of the masked weights that stays, in all layers or, for methods that share it out, in those
            together that ``keep_layers`` does not name.
        keep_layers: keep rates of single layers, by pattern (see :mod:`s2ap_core.masks.choice`), such as
            ``{layer4 = 0.05}``; of several for one layer the longest counts.
        only, skip: patterns of the layers that are masked, where empty all, and of those that stay dense.
        embeddings: whether embeddings are masked too.
        penalty: HARP's c, the factor of its penalty on keeping too much.
        rate_init: where HARP's layer-wise keep rates start: ``uniform`` at the larger of 0.1 and ``keep``
            (the published ``010_uni``), ``target`` at ``keep``, or one keep rate for each layer or unit; none above
            0.99.
        tau: with rates from spectra, how far layers' sparsities may be from the network's, relative to it.
        init: RLTH's untrained weights: ``signed-constant`` or ``kaiming``.
        flops_reduction: how many times fewer FLOPs channel pruning leaves, instead of ``keep``.
        batches: adversarial training batches of ``prune.batch_size`` that gradients are taken of for a mask without a
            search.
        options: of a method of one's own, ``FILE.py:FACTORY``.
    """

    name: str = "hydra"
    keep: float = Field(default=0.1, gt=0, le=1)
    keep_layers: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default={})
    only: list[str] = Field(default=[])
    skip: list[str] = Field(default=[])
    embeddings: bool = False
    penalty: float = Field(default=0.01, ge=0)
    rate_init: Literal["uniform", "target"] | list[Annotated[float, Field(gt=0, le=1)]] = "uniform"
    tau: float = Field(default=0.2, gt=0, lt=1)
    init: Literal["signed-constant", "kaiming"] = "signed-constant"
    flops_reduction: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    batches: int = Field(default=4, ge=1)
    options: Options = Field(default={})

    @cached_property
    def noted(self) -> Mapping[str, bool]:
        """What a run noted of a method that is not one of ours; it is no setting, and set where the run is opened."""
        return {}


class MinimizerSettings(Settings):
    """What the search minimises besides the loss.

    Attributes:
        name: ``none`` (Orig.), ``s2ap`` (perturbs scores), ``awp`` (perturbs masked weights).
        gamma: radius of each layer's ball relative to the layer's norm; ``flips`` takes the smallest radius that flips
            a share of the mask, ``rise`` follows a relative rise of the loss.
        flips: with ``flips``, entries that leave each layer's mask, over those kept, as many enter it; on average where
            it makes no whole number.
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
