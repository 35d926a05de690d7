"""Which run belongs to which setting of the paper, by what its config says."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from figures.catalogue import Cell
from s2ap_core.config import Config
from s2ap_core.data.cifar10c import CORRUPTIONS
from s2ap_core.errors import InputError
from s2ap_core.evaluation import Evaluation, load_evaluation
from s2ap_core.methods import METHODS
from s2ap_core.presets import compose, groups
from s2ap_diag.collect import SHARPNESS, Run, Skipped, collect
from s2ap_diag.hessian import BatchNormMode

FREE = ("title", "seed", "tracking", "data.root", "pretrain.checkpoint", "evaluation.stages", "evaluation.batch_size")
"""Settings in which the runs of one arm may differ."""

ARM = ("minimizer", "finetune.awp", "finetune.gamma")
"""Settings in which two arms may differ."""

UNREAD = {"clean": ("beta", "eps", "step", "steps"), "pgd-at": ("beta",), "fast-at": ("beta", "step", "steps")}
"""Settings that an objective does not read, so that runs which differ in them are trained alike."""


@dataclass(frozen=True)
class Conditions:
    """Settings that runs must share for their numbers to be put together; None where there is no such setting."""

    def __str__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{key} {value}" for key, value in values if value is not None)


@dataclass(frozen=True)
class Training(Conditions):
    """What a run is trained on; eps and step in [0, 1]."""

    objective: str
    beta: float | None
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
    """What a config trains on."""
    settings = config.objective
    read = {name: value for name, value in settings if name not in UNREAD.get(settings.name, ())}
    return Training(settings.name, *(read.get(name) for name in ("beta", "eps", "step", "steps")))


def threat_of(config: Config) -> Threat | None:
    """What a config evaluates under, None if it evaluates nothing."""
    asked = config.evaluation
    if not asked.stages:
        return None
    if asked.attack == "none":
        return Threat("none", None, None, asked.n)
    return Threat(asked.attack, asked.norm, config.objective.eps if asked.eps is None else asked.eps, asked.n)


def arm_of(config: Config) -> str | None:
    """The arm, None if the perturbation is none of the paper's (cheaper, carried, of another step or update).

    Finetuning counts where there is one: the raw mask is the search's alone.
    """
    minimizer = config.minimizer
    cheaper = minimizer.single_step or minimizer.subset < 1 or minimizer.every > 1
    as_printed = minimizer.carry or minimizer.eta_z != math.inf or minimizer.update != "method"
    if cheaper or as_printed:
        return None
    if minimizer.name == "awp":
        return "awp"
    if not is_finetuned(config):
        return "s2ap" if minimizer.name == "s2ap" else "orig"
    arms = {(False, False): "orig", (True, True): "s2ap", (False, True): "orig-awp", (True, False): "s2ap-plain"}
    return arms[minimizer.name == "s2ap", config.finetune.awp]


def is_finetuned(config: Config) -> bool:
    """Whether a run trains weights under its final mask."""
    method = METHODS.get(config.method.name)
    stages = config.evaluation.stages
    return getattr(method, "finetuned", True) and ("finetune" in stages or not stages)


def cell_of(config: Config, printed: str = "") -> Cell:
    """The setting that a config is of, its sparsity rounded to a tenth of a percent."""
    flops = config.method.flops_reduction
    return Cell(
        data=config.data.name,
        network=config.network.name,
        method=config.method.name,
        sparsity=round(100 * (1 - config.method.keep), 1) if flops is None else None,
        flops_reduction=flops,
        training="clean" if config.objective.name == "clean" else None,
        printed=printed,
    )


def gamma_of(config: Config) -> float | None:
    """Radius of the perturbation, None where neither scores nor weights are perturbed."""
    if config.minimizer.name != "none":
        return config.minimizer.gamma
    if is_finetuned(config) and config.finetune.awp:
        return config.finetune.gamma or config.minimizer.gamma
    return None


def paper_gamma(cell: Cell) -> float | None:
    """The gamma that the presets give a network on a data set, None for those that the paper does not have."""
    for group in groups():
        if cell.data in group.axes["data"] and cell.network in group.axes["network"]:
            first = next(group.cells(["s2ap"]))
            settings = compose({**first, "data": cell.data, "network": cell.network})
            return float(settings["minimizer"]["gamma"])
    return None


@dataclass(frozen=True)
class Place:
    """Where a run belongs."""

    run: Run
    cell: Cell
    arm: str
    gamma: float | None
    seed: int
    training: Training
    threat: Threat | None

    @property
    def setting(self) -> tuple[str, ...]:
        """Within it, all runs that are shown are trained and evaluated alike: data set, network, with an adversary."""
        return tuple(filter(None, (self.cell.data, self.cell.network, self.cell.training)))


def place_of(run: Run) -> Place | None:
    """Where a run belongs, None if its perturbation is none of the paper's."""
    config = run.config
    arm = arm_of(config)
    if arm is None:
        return None
    found = cell_of(config), arm, gamma_of(config), config.seed, training_of(config), threat_of(config)
    return Place(run, *found)


class Library:
    """The runs of a folder by setting, arm, gamma and seed.

    Of the runs of a data set and network, those trained and evaluated as most of them are; the others are left
    out, so that no number is made of both.

    Attributes:
        skipped: what could not be used.
        left_out: how many runs were trained or evaluated otherwise, and how.
        conflicts: groups of runs that claim the same place, none of which is used.
        used: by path the runs that something was read of, and the needs that were.
        batch_norm: the mode of BatchNorm that curvature is read of.
        attack: runs evaluated under another one are left out: the one asked for, else the commonest. Those
            without an adversary stay.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        skipped: Sequence[Skipped] = (),
        batch_norm: BatchNormMode = "batch",
        attack: str | None = None,
    ) -> None:
        self.skipped = list(skipped)
        self.conflicts: dict[tuple[Path, ...], str] = {}
        self.used: dict[Path, tuple[Place, set[str]]] = {}
        self.batch_norm = batch_norm
        attacks = Counter(run.config.evaluation.attack for run in runs if run.config.evaluation.attack != "none")
        self.attack = attack or _commonest(attacks.elements())
        self.left_out: list[str] = []
        by_setting: dict[tuple[str, ...], list[Place]] = defaultdict(list)
        for run in runs:
            place = place_of(run)
            if place is not None:
                by_setting[place.setting].append(place)
        self.places = [place for alike in map(self._alike, by_setting.values()) for place in alike]

    def _alike(self, places: Sequence[Place]) -> list[Place]:
        """Those of a setting that were trained and evaluated as most of them are; the others are noted."""
        under = {place.threat.attack for place in places if place.threat is not None}
        attack = self.attack if self.attack in under else "none"
        attacked = [place for place in places if place.threat is None or place.threat.attack == attack]
        training = _commonest(place.training for place in attacked)
        trained = [place for place in attacked if place.training == training]
        threat = _commonest(place.threat for place in trained if place.threat is not None)
        kept = [place for place in trained if place.threat in (None, threat)]
        others: dict[tuple[str, Conditions, Any], list[Place]] = defaultdict(list)
        for place in places:
            if training is not None and place.training != training:
                others["trained", place.training, training].append(place)
            elif place.threat is not None and place.threat != threat:
                others["evaluated", place.threat, threat or f"attack {self.attack}"].append(place)
        for (what, own, shown), group in others.items():
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            self.left_out.append(
                f"{group[0].run.path}{more}: {what} with {own}; shown is what {' '.join(group[0].setting)} gave with "
                f"{shown}: give --runs a folder that holds the others alone, or --attack where that is what differs"
            )
        return kept

    @classmethod
    def open(cls, folder: Path, batch_norm: BatchNormMode = "batch", attack: str | None = None) -> "Library":
        """The runs that lie under a folder.

        Raises:
            InputError: if there is no such folder.
        """
        runs, skipped = collect(folder)
        return cls(runs, skipped, batch_norm, attack)

    def drop_damaged(self, needs: Iterable[str]) -> None:
        """Read what will be needed, and skip the runs of which it cannot be read."""
        needs = list(needs)
        kept = []
        for place in self.places:
            try:
                for need in needs:
                    if self.holds(place.run, need):
                        self.read(place.run, need)
            except InputError as error:
                self.skipped.append(Skipped(place.run.path, str(error)))
            else:
                kept.append(place)
        self.places = kept

    def holds(self, run: Run, need: str) -> bool:
        """Whether a run has an evaluation (``evaluate-STAGE``), masks, times, curvature, sharpness or corruptions."""
        searched = "prune" in run.results
        if need == "curvature":
            tracking = run.config.tracking
            read = tracking.every > 0 and "curvature" in tracking.metrics and self.batch_norm in tracking.batch_norm
            return searched and read
        if need == "sharpness":
            return (run.path / SHARPNESS).is_file()
        if need == "corruptions":
            return any((run.path / "evals").glob("finetune-best-*.npz"))
        if need in ("masks", "timing"):
            return searched
        return need in run.results and need.removeprefix("evaluate-") in run.config.evaluation.stages

    def read(self, run: Run, need: str) -> Any:
        """What :meth:`holds` said is there.

        Raises:
            InputError: if it is damaged.
        """
        match need:
            case "curvature":
                return run.tracked(f"lambda_max_{self.batch_norm}")
            case "sharpness":
                return loss_differences(run)
            case "corruptions":
                return list(corrupted(run))
            case "masks":
                return run.stability
            case "timing":
                return run.timing
            case _:
                return run.evaluation(need.removeprefix("evaluate-"))

    def gamma(self, cell: Cell) -> float | None:
        """The gamma that a setting is shown at: the paper's, else the commonest among its network's runs."""
        listed = paper_gamma(cell)
        if listed is not None:
            return listed
        same = ("data", "network", "method", "training")
        alike = [p for p in self.places if all(getattr(p.cell, name) == getattr(cell, name) for name in same)]
        counted = Counter(place.gamma for place in alike if place.gamma is not None)
        return min(counted, key=lambda gamma: (-counted[gamma], gamma)) if counted else None

    def find(self, cell: Cell, arm: str, need: str) -> dict[int, Run]:
        """The run of each seed that holds what is needed, at the gamma that the setting is shown at."""
        if arm == "dense":
            return self._dense(cell, need)
        gamma = self.gamma(cell)
        return self._by_seed([p for p in self._of(cell, arm, need) if _same_gamma(p.gamma, gamma)], need)

    def find_gammas(self, cell: Cell, arm: str, need: str) -> dict[float, dict[int, Run]]:
        """The run of each seed, by gamma in ascending order."""
        places = self._of(cell, arm, need)
        gammas = sorted({place.gamma for place in places if place.gamma is not None})
        return {gamma: self._by_seed([p for p in places if p.gamma == gamma], need) for gamma in gammas}

    def _of(self, cell: Cell, arm: str, need: str) -> list[Place]:
        return [p for p in self.places if p.cell == cell and p.arm == arm and self.holds(p.run, need)]

    def _by_seed(self, places: Sequence[Place], need: str) -> dict[int, Run]:
        """One run for each seed; of two that claim the same, none."""
        found = {}
        for seed in sorted({place.seed for place in places}):
            claims = [place for place in places if place.seed == seed]
            if len(claims) > 1:
                paths = tuple(place.run.path for place in claims)
                self.conflicts[paths] = (
                    f"{' and '.join(map(str, paths))}: both are {in_words(claims[0])}; none of them is used, "
                    "move all but one away"
                )
                continue
            found[seed] = claims[0].run
            self._use(claims[0], need)
        return found

    def _use(self, place: Place, need: str) -> None:
        self.used.setdefault(place.run.path, (place, set()))[1].add(need)

    def _dense(self, cell: Cell, need: str) -> dict[int, Run]:
        """The dense network of each seed: the same in many runs, so any of them, unless they differ."""
        found: dict[int, Run] = {}
        for place in self.places:
            dense = (place.cell.data, place.cell.network, place.cell.training) == (
                cell.data,
                cell.network,
                cell.training,
            )
            if not dense or not self.holds(place.run, need):
                continue
            first = found.setdefault(place.seed, place.run)
            if _outcome(first, need) != _outcome(place.run, need):
                self.conflicts[first.path, place.run.path] = (
                    f"{first.path} and {place.run.path}: their dense {cell.network} on {cell.data}, seed {place.seed}, "
                    "differ in accuracy or attack; the first is used"
                )
            elif first is place.run:
                self._use(place, need)
        return found


def _commonest(values: Iterable[Any]) -> Any:
    """The first of the most frequent ones, None of none."""
    return next((value for value, _ in Counter(values).most_common(1)), None)


def in_words(place: Place) -> str:
    """What a run is, for messages."""
    cell = place.cell
    words = [cell.data, cell.network, cell.method, place.arm, cell.budget, cell.training]
    words += [None if place.gamma is None else f"gamma {place.gamma:g}", f"seed {place.seed}"]
    return ", ".join(word for word in words if word)


def loss_differences(run: Run) -> dict[float, float]:
    """Mean loss difference by rho.

    Raises:
        InputError: if the record is damaged.
    """
    try:
        return {float(rho): float(found["mean"]) for rho, found in (run.sharpness or {})["loss_difference"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.path / SHARPNESS}: no loss differences by rho; measure it again") from error


def corrupted(run: Run) -> Iterator[Evaluation]:
    """The evaluations of the finetuned network on CIFAR-10-C that lie beside the run's own.

    Raises:
        InputError: if one is damaged.
    """
    for file in sorted((run.path / "evals").glob("finetune-best-*.npz")):
        found = load_evaluation(file)
        if found.about.get("corruption") is not None and found.about.get("attack") == "none":
            yield found


def corruption_accuracy(run: Run, severity: int) -> float | None:
    """Mean accuracy over the fifteen corruptions in [0, 1], None unless all of them were evaluated."""
    found = {e.about["corruption"]: e.clean.mean() for e in corrupted(run) if e.about.get("severity") == severity}
    return float(np.mean([found[name] for name in CORRUPTIONS])) if found.keys() >= set(CORRUPTIONS) else None


def mixed_settings(arms: Mapping[str, Iterable[Run]]) -> list[str]:
    """Settings in which runs differ that a cell puts together, apart from seed, arm and what has no influence."""
    by_arm = {arm: [_flat(run.config.model_dump()) for run in runs] for arm, runs in arms.items()}
    found = set()
    for arm, configs in by_arm.items():
        found |= _differing(configs, (*FREE, *ARM) if arm == "orig" else FREE)  # Orig. reads none of ARM
    found |= _differing([config for configs in by_arm.values() for config in configs], (*FREE, *ARM))
    return sorted(found)


def _differing(configs: Sequence[Mapping[str, Any]], free: Sequence[str]) -> set[str]:
    keys = {key for config in configs for key in config}
    compared = {key for key in keys if not any(key == f or key.startswith(f"{f}.") for f in free)}
    return {key for key in compared if len({str(config.get(key)) for config in configs}) > 1}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _same_gamma(found: float | None, wanted: float | None) -> bool:
    return found is None or (wanted is not None and math.isclose(found, wanted, rel_tol=1e-6))


def _outcome(run: Run, need: str) -> tuple[Any, ...]:
    summary = run.results[need]
    return tuple(summary.get(key) for key in ("clean_accuracy", "robust_accuracy", "attack", "norm", "eps", "n"))
