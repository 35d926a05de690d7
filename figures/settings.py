"""What a config says of its run, as far as the paper's tables tell runs apart by it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from figures.catalogue import Cell
from s2ap_core.config import Config
from s2ap_core.presets.compose import compose, groups
from s2ap_core.presets.effects import UNREAD
from s2ap_core.runs import course
from s2ap_core.runs.identity import flat
from s2ap_diag.reading.results import Run

FREE = (
    "title", "seed", "tracking", "data.root", "data.options.fold", "pretrain.checkpoint",
    "evaluation.stages", "evaluation.batch_size",
)  # fmt: skip
"""Settings in which the runs of one arm may differ."""


ARM = ("minimizer", "finetune.awp", "finetune.gamma")
"""Settings in which two arms may differ."""


@dataclass(frozen=True)
class Conditions:
    """Settings that runs must share for their numbers to be put together; None where there is no such setting."""

    def __str__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{key} {value}" for key, value in values if value is not None)


@dataclass(frozen=True)
class Training(Conditions):
    """What a run is trained on; eps and step in its norm, images in [0, 1]."""

    objective: str
    beta: float | None
    norm: str | None
    eps: Fraction | None
    step: Fraction | None
    steps: int | None


@dataclass(frozen=True)
class Threat(Conditions):
    """What a run is evaluated under; without an attack there is neither norm nor eps. n None is all test images."""

    attack: str
    norm: str | None
    eps: Fraction | None
    n: int | None


def training_of(config: Config) -> Training:
    """Read what a config trains on."""
    settings = config.objective
    read = {name: value for name, value in settings if name not in UNREAD.get(settings.name, ())}
    return Training(settings.name, *(read.get(name) for name in ("beta", "norm", "eps", "step", "steps")))


def threat_of(config: Config) -> Threat | None:
    """Read what a config evaluates under, None if it evaluates nothing."""
    asked = config.evaluation
    if not asked.stages:
        return None
    if asked.attack == "none":
        return Threat("none", None, None, asked.n)
    trained = config.objective
    return Threat(asked.attack, asked.norm or trained.norm, trained.eps if asked.eps is None else asked.eps, asked.n)


def cell_of(config: Config, printed: str = "") -> Cell:
    """Name the setting that a config is of, its sparsity rounded to a tenth of a percent."""
    flops = course.flops_reduction(config)
    return Cell(
        data=config.data.name,
        network=course.network(config),
        method=config.method.name,
        sparsity=round(100 * (1 - config.method.keep), 1) if flops is None else None,
        flops_reduction=flops,
        training="clean" if config.objective.name == "clean" else None,
        printed=printed,
    )


def paper_gamma(cell: Cell) -> float | None:
    """Look up the gamma that the presets give a network on a data set, None for those that the paper does not have."""
    for group in groups():
        if cell.data in group.axes["data"] and cell.network in group.axes["network"]:
            first = next(group.combinations(["s2ap"]))
            settings = compose({**first, "data": cell.data, "network": cell.network})
            return float(settings["minimizer"]["gamma"])
    return None


def mixed_settings(arms: Mapping[str, Iterable[Run]]) -> list[str]:
    """Find in what the runs of a cell differ, apart from seed, arm and what has no influence."""
    by_arm = {arm: [flat(run.config.model_dump()) for run in runs] for arm, runs in arms.items()}
    differing = set()
    for arm, configs in by_arm.items():
        differing |= _differing(configs, (*FREE, *ARM) if arm == "orig" else FREE)  # Orig. reads none of ARM
    differing |= _differing([config for configs in by_arm.values() for config in configs], (*FREE, *ARM))
    return sorted(differing)


def differing_settings(configs: Iterable[Config], free: Sequence[str]) -> list[str]:
    """Find in what configs differ, by dotted key, apart from ``free`` and from what has no influence."""
    return sorted(_differing([flat(config.model_dump()) for config in configs], (*FREE, *free)))


def _differing(configs: Sequence[Mapping[str, Any]], free: Sequence[str]) -> set[str]:
    keys = {key for config in configs for key in config}
    compared = {key for key in keys if not any(key == f or key.startswith(f"{f}.") for f in free)}
    return {key for key in compared if len({str(config.get(key)) for config in configs}) > 1}
