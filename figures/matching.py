"""Which run belongs to which setting of the paper, by what its config says."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.afterwards import corrupted, loss_differences
from figures.catalogue import Cell
from figures.settings import Conditions, Threat, Training, cell_of, paper_gamma, threat_of, training_of
from s2ap_core.errors import InputError
from s2ap_core.runs import course
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.reading.results import SHARPNESS, Run, Skipped, collect


@dataclass(frozen=True)
class PlacedRun:
    """A run, and where it belongs: setting, arm, gamma, seed, and what it was trained and evaluated under."""

    run: Run
    cell: Cell
    arm: str
    gamma: float | None
    seed: int
    training: Training
    threat: Threat | None

    @property
    def setting(self) -> tuple[str, ...]:
        """Data set, network and adversary: all runs shown of these were trained and evaluated in the same way."""
        return tuple(filter(None, (self.cell.data, self.cell.network, self.cell.training)))


def place_run(run: Run) -> PlacedRun | None:
    """Place a run where it belongs, None if its perturbation is none of the paper's."""
    config = run.config
    if not course.as_published(config):
        return None
    described = cell_of(config), course.arm(config), course.gamma(config), config.seed
    return PlacedRun(run, *described, training_of(config), threat_of(config))


class Library:
    """The runs of a folder by setting, arm, gamma and seed.

    Of the runs of a data set and network it keeps those trained and evaluated as most of them are, and leaves out the
    others, so that no number mixes both.

    Attributes:
        runs: all of them, used or not.
        skipped: what could not be used.
        left_out: how many runs were searched, trained or evaluated otherwise, and how.
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
        self.runs, self.skipped = list(runs), list(skipped)
        self.conflicts: dict[tuple[Path, ...], str] = {}
        self.used: dict[Path, tuple[PlacedRun, set[str]]] = {}
        self.batch_norm = batch_norm
        attacks = Counter(run.config.evaluation.attack for run in runs if run.config.evaluation.attack != "none")
        self.attack = attack or _commonest(attacks.elements())
        self.left_out: list[str] = []
        by_setting: dict[tuple[str, ...], list[PlacedRun]] = defaultdict(list)
        unpublished: dict[str, list[Path]] = defaultdict(list)
        for run in runs:
            placed = place_run(run)
            if placed is not None:
                by_setting[placed.setting].append(placed)
            else:
                unpublished[course.arm(run.config)].append(run.path)
        for arm, paths in unpublished.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            self.left_out.append(
                f"{paths[0]}{more}: {arm} by a perturbation or an update that is none of the paper's, so that they are "
                "in no cell; the table of doses and `python -m figures.cheaper` compare such"
            )
        self.placed_runs = [placed for alike in map(self._alike, by_setting.values()) for placed in alike]

    def _alike(self, placed_runs: Sequence[PlacedRun]) -> list[PlacedRun]:
        """Select the runs of a setting that were trained and evaluated as most of them are; note the others."""
        under = {placed.threat.attack for placed in placed_runs if placed.threat is not None}
        attack = self.attack if self.attack in under else "none"
        attacked = [placed for placed in placed_runs if placed.threat is None or placed.threat.attack == attack]
        training = _commonest(placed.training for placed in attacked)
        trained = [placed for placed in attacked if placed.training == training]
        threat = _commonest(placed.threat for placed in trained if placed.threat is not None)
        kept = [placed for placed in trained if placed.threat in (None, threat)]
        others: dict[tuple[str, Conditions, Any], list[PlacedRun]] = defaultdict(list)
        for placed in placed_runs:
            if training is not None and placed.training != training:
                others["trained", placed.training, training].append(placed)
            elif placed.threat is not None and placed.threat != threat:
                others["evaluated", placed.threat, threat or f"attack {self.attack}"].append(placed)
        for (what, own, shown), group in others.items():
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            self.left_out.append(
                f"{group[0].run.path}{more}: {what} with {own}; shown is what {' '.join(group[0].setting)} gave with "
                f"{shown}: give --runs a folder that holds the others alone, or --attack where that is what differs"
            )
        return kept

    @classmethod
    def open(cls, folder: Path, batch_norm: BatchNormMode = "batch", attack: str | None = None) -> "Library":
        """Open the runs that lie under a folder.

        Raises:
            InputError: if there is no such folder.
        """
        runs, skipped = collect(folder)
        return cls(runs, skipped, batch_norm, attack)

    def drop_damaged(self, needs: Iterable[str]) -> None:
        """Read what will be needed, and skip the runs whose files cannot be read."""
        needs = list(needs)
        kept = []
        for placed in self.placed_runs:
            try:
                for need in needs:
                    if self.holds(placed.run, need):
                        self.read(placed.run, need)
            except InputError as error:
                self.skipped.append(Skipped(placed.run.path, str(error)))
            else:
                kept.append(placed)
        self.placed_runs = kept

    def holds(self, run: Run, need: str) -> bool:
        """Return whether a run has what is needed.

        Args:
            need: an evaluation (``evaluate-STAGE``), masks, timing, curvature, sharpness or corruptions.
        """
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
        """Read what :meth:`holds` said is there.

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
        """Choose the gamma that a setting is shown at: the paper's, else the commonest among its network's runs."""
        listed = paper_gamma(cell)
        if listed is not None:
            return listed
        same = ("data", "network", "method", "training")
        alike = [p for p in self.placed_runs if all(getattr(p.cell, name) == getattr(cell, name) for name in same)]
        counted = Counter(placed.gamma for placed in alike if placed.gamma is not None)
        return min(counted, key=lambda gamma: (-counted[gamma], gamma)) if counted else None

    def find(self, cell: Cell, arm: str, need: str) -> dict[int, Run]:
        """Find the run of each seed that holds what is needed, at the gamma that the setting is shown at."""
        if arm == "dense":
            return self._dense(cell, need)
        gamma = self.gamma(cell)
        return self._by_seed([p for p in self._of(cell, arm, need) if _same_gamma(p.gamma, gamma)], need)

    def find_gammas(self, cell: Cell, arm: str, need: str) -> dict[float, dict[int, Run]]:
        """Find the run of each seed, by gamma in ascending order."""
        placed_runs = self._of(cell, arm, need)
        gammas = sorted({placed.gamma for placed in placed_runs if placed.gamma is not None})
        return {gamma: self._by_seed([p for p in placed_runs if p.gamma == gamma], need) for gamma in gammas}

    def _of(self, cell: Cell, arm: str, need: str) -> list[PlacedRun]:
        return [p for p in self.placed_runs if p.cell == cell and p.arm == arm and self.holds(p.run, need)]

    def _by_seed(self, placed_runs: Sequence[PlacedRun], need: str) -> dict[int, Run]:
        """Select one run for each seed; where two have the same seed, neither."""
        by_seed = {}
        for seed in sorted({placed.seed for placed in placed_runs}):
            claims = [placed for placed in placed_runs if placed.seed == seed]
            if len(claims) > 1:
                paths = tuple(placed.run.path for placed in claims)
                self.conflicts[paths] = (
                    f"{' and '.join(map(str, paths))}: both are {in_words(claims[0])}; none of them is used, "
                    "move all but one away"
                )
                continue
            by_seed[seed] = claims[0].run
            self._use(claims[0], need)
        return by_seed

    def _use(self, placed: PlacedRun, need: str) -> None:
        self.used.setdefault(placed.run.path, (placed, set()))[1].add(need)

    def _dense(self, cell: Cell, need: str) -> dict[int, Run]:
        """Find the first run with each seed's dense network, which many runs share; note where the networks differ."""
        by_seed: dict[int, Run] = {}
        for placed in self.placed_runs:
            dense = (placed.cell.data, placed.cell.network, placed.cell.training) == (
                cell.data,
                cell.network,
                cell.training,
            )
            if not dense or not self.holds(placed.run, need):
                continue
            first = by_seed.setdefault(placed.seed, placed.run)
            if _outcome(first, need) != _outcome(placed.run, need):
                self.conflicts[first.path, placed.run.path] = (
                    f"{first.path} and {placed.run.path}: their dense {cell.network} on {cell.data}, "
                    f"seed {placed.seed}, differ in accuracy or attack; the first is used"
                )
            elif first is placed.run:
                self._use(placed, need)
        return by_seed


def _commonest(values: Iterable[Any]) -> Any:
    """Pick the first of the most frequent items; None where there is none."""
    return next((value for value, _ in Counter(values).most_common(1)), None)


def in_words(placed: PlacedRun) -> str:
    """Say what a run is, for messages."""
    cell = placed.cell
    words = [cell.data, cell.network, cell.method, placed.arm, cell.budget, cell.training]
    words += [None if placed.gamma is None else f"gamma {placed.gamma:g}", f"seed {placed.seed}"]
    return ", ".join(word for word in words if word)


def _same_gamma(own: float | None, wanted: float | None) -> bool:
    return own is None or (wanted is not None and math.isclose(own, wanted, rel_tol=1e-6))


def _outcome(run: Run, need: str) -> tuple[Any, ...]:
    summary = run.results[need]
    return tuple(summary.get(key) for key in ("clean_accuracy", "robust_accuracy", "attack", "norm", "eps", "n"))
