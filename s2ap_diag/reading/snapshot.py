"""How a run stands, read from the files that it writes anyway: of one that goes on in another process, too."""

import csv
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from s2ap_core.config import Config
from s2ap_core.data import Split
from s2ap_core.files import lock
from s2ap_core.files.record import load_json
from s2ap_core.runs import course
from s2ap_core.runs.directory import METRICS, TIMING, RunDirectory
from s2ap_core.runs.passes import image_passes
from s2ap_core.training.evaluation import load_evaluation
from s2ap_diag.reading.read import read
from s2ap_diag.stability import PackedMasks, hamming
from s2ap_diag.stability.margins import score_margins

NEAR = 0.01
"""Relative distance from its layer's threshold within which a score counts as near it."""

State = Literal["running", "stopped", "done"]


@dataclass(frozen=True)
class Snapshot:
    """How a run stands.

    Attributes:
        state: whether a process is at it, and if not, whether it is complete.
        stage: what it is at, or would go on with: a stage or ``evaluate STAGE``; the last one of a complete run.
        done, total: epochs of a stage, images of an evaluation.
        left: seconds until the run ends, at the pace so far; None before the first epoch.
        loss: training loss by epoch of the stage, or of the last one that was trained.
        curves: of the search, by epoch: ``lambda_max_live`` in BatchNorm's mode ``mode``, ``flips`` (mask bits that z
            flips in an update), ``h`` (Eq. 13), ``near`` (share of the scores near their threshold).
        entries: of the mask; 0 before the search.
    """

    path: Path
    config: Config
    state: State
    stage: str
    done: int
    total: int
    left: float | None
    loss: Mapping[int, float]
    curves: Mapping[str, Mapping[int, float]]
    mode: str
    entries: int

    def line(self, name: str = "") -> str:
        """Say in a line how the run stands: stage, time left, and the last of each reading."""
        readings = [f"{label} {value}" for label, value in self.last.items()]
        return " · ".join(filter(None, [name, self.stands, self.time_left, *readings]))

    @property
    def stands(self) -> str:
        """The stage and how much of it is done; that the run is done, or that nobody works on it."""
        if self.state == "done":
            return "done"
        said = f"{self.stage} {self.done}/{self.total}" if self.total else self.stage
        return said if self.state == "running" else f"stopped at {said}"

    @property
    def time_left(self) -> str:
        """How long the run still takes, in words; nothing of one that nobody works on, or that has just begun."""
        if self.state != "running" or self.left is None:
            return ""
        minutes = self.left / 60
        if minutes < 1:
            return "under a minute left"
        return f"{minutes:.0f} min left" if minutes < 100 else f"{minutes / 60:.1f} h left"

    @property
    def last(self) -> dict[str, str]:
        """The last of each reading that there is, in words."""
        shown = {"loss": self.loss, "live λ": self.curves["lambda_max_live"], "h": self.curves["h"]}
        found = {name: f"{list(curve.values())[-1]:.3g}" for name, curve in shown.items() if curve}
        if self.curves["flips"] and self.entries:
            found["flips"] = f"{100 * list(self.curves['flips'].values())[-1] / self.entries:.2g} %"
        return {name: found[name] for name in ("loss", "live λ", "flips", "h") if name in found}


@dataclass
class Watcher:
    """Looks at a run again and again, and reads each mask and checkpoint once, ``metrics.csv`` where it has changed.

    Args:
        near: read the margins too, for which each epoch's checkpoint is opened.
    """

    path: Path
    near: bool = True
    _h: dict[int, float] = field(default_factory=dict)
    _near: dict[int, float] = field(default_factory=dict)
    _first: PackedMasks | None = None
    _stamp: tuple[int, ...] = ()
    _metrics: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def look(self) -> Snapshot:
        """Look at the run.

        Raises:
            InputError: if there is no run, or a file is damaged.
        """
        run = RunDirectory.open(self.path)
        results, config = run.results(), run.config
        trained, missing = course.trained(config), [e for e in course.expected(config) if e not in results]
        at = next((stage for stage in trained if stage not in results), None)
        evaluations = [stage for stage in course.evaluated(config) if f"evaluate-{stage}" not in results]
        last = at or trained[-1]
        stage = f"evaluate {evaluations[0]}" if at is None and evaluations else last
        metrics = self._means()
        if at is None and evaluations:
            done, total = _images(self.path, config, evaluations[0])
        else:
            epochs = metrics.get((last, "val_loss"), {})
            done, total = max(epochs, default=0), max(course.epochs(config, last), default=0)
        if "prune" in trained and (missing or self.near):
            self._read_masks(run)
        modes = [mode for mode in ("batch", "running") if ("prune", f"lambda_max_live_{mode}") in metrics]
        mode = modes[0] if modes else ""
        losses = [losses for name in trained if (losses := metrics.get((name, "train_loss"), {}))]
        return Snapshot(
            path=self.path,
            config=config,
            state="done" if not missing else "running" if lock.in_use(self.path) else "stopped",
            stage=stage,
            done=done,
            total=total,
            left=_seconds_left(self.path, config, done / total if at is None and total else 0.0, results),
            loss=losses[-1] if losses else {},
            curves={
                "lambda_max_live": metrics.get(("prune", f"lambda_max_live_{mode}"), {}),
                "flips": metrics.get(("prune", "perturbation_flips"), {}),
                "h": dict(sorted(self._h.items())),
                "near": dict(sorted(self._near.items())),
            },
            mode=mode,
            entries=sum(mask.entries for mask in self._first.layers.values()) if self._first else 0,
        )

    def _means(self) -> dict[tuple[str, str], dict[int, float]]:
        """Read the finite values of whole epochs, by stage and metric, again where the file has changed."""
        file = self.path / "metrics.csv"
        found = file.stat() if file.exists() else None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino) if found else ()
        if stamp != self._stamp:
            self._metrics, self._stamp = _means(file), stamp
        return self._metrics

    def _read_masks(self, run: RunDirectory) -> None:
        """Read what has come since the last look; a run that began anew is read anew."""
        if not run.masks(0).exists():
            self._h, self._near, self._first = {}, {}, None
            return
        if self._first is None:
            self._first = read(run.masks(0)).as_masks().masks
        for epoch in course.epochs(run.config, "prune"):
            if epoch not in self._h and run.masks(epoch).exists():
                self._h[epoch] = hamming(self._first, read(run.masks(epoch)).as_masks().masks).h
            checkpoint = run.checkpoint(f"prune-epoch-{epoch:03d}")
            if self.near and epoch not in self._near and checkpoint.exists():
                self._near[epoch] = score_margins(read(checkpoint).as_checkpoint("cpu").model, NEAR).within


def _rows(file: Path, columns: tuple[str, ...]) -> list[list[str]]:
    """Read the whole lines of a CSV that another process appends to."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in islice(csv.reader(lines), 1, None) if len(row) == len(columns)]


def _means(file: Path) -> dict[tuple[str, str], dict[int, float]]:
    means: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for stage, epoch, iteration, metric, value in _rows(file, METRICS):
        if not iteration and math.isfinite(number := float(value)):
            means[stage, metric][int(epoch)] = number
    return dict(means)


def _images(path: Path, config: Config, stage: str) -> tuple[int, int]:
    """Count the images that an evaluation has done, and all of them."""
    count = _counts(path)["test"]
    total = min(config.evaluation.n or count, count)
    file = path / "evals" / f"{stage}.npz"
    return (len(load_evaluation(file).label) if file.exists() else 0), total


def _counts(path: Path) -> dict[Split, int]:
    """Read how many images each split has; before the run has counted them, one."""
    file = path / "fingerprint.json"
    found = load_json(file, dict, "run again with --resume") if file.exists() else {}
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {split: int(found.get(f"data.{split}.images", 1)) for split in splits}


def _seconds_left(path: Path, config: Config, share: float, results: Mapping[str, object]) -> float | None:
    """Estimate the seconds left: of each stage by its own pace, of one without an epoch by the passes it makes.

    Args:
        share: of the evaluation that runs, how much is done.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for stage, _, seconds in _rows(path / "timing.csv", TIMING):
        spent[stage].append(float(seconds))
    passes = {stage: count for stage, count in image_passes(config, _counts(path)).items() if count}
    epochs: dict[str, int] = {stage: len(course.epochs(config, stage)) for stage in course.trained(config)}
    unit = {stage: count / (epochs.get(stage) or 1) for stage, count in passes.items()}
    known = {stage: sum(of_stage) / len(of_stage) for stage, of_stage in spent.items()}
    measured = [stage for stage in known if stage in unit]
    if not measured:
        return None
    pace = sum(known[stage] for stage in measured) / sum(unit[stage] for stage in measured)
    left, current = 0.0, True
    for stage in passes:
        if stage in results:
            continue
        each = known.get(stage, pace * unit[stage])
        left += each * max(epochs.get(stage, 1) - len(spent[stage]), 0)
        if current:
            left -= each * share if stage.startswith("evaluate-") else min(_seconds_since(path), each)
        current = False
    return max(left, 0.0)


def _seconds_since(path: Path) -> float:
    """Measure how long ago the last epoch ended."""
    return max(time.time() - (path / "timing.csv").stat().st_mtime, 0.0)
