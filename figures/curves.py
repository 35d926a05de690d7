"""What a figure draws: curves of runs over epochs, and every number in the picture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from figures.catalogue import Cell, Entry
from figures.matching import Library
from figures.numbers import Reading
from figures.settings import mixed_settings
from s2ap_diag.reading.results import Run
from s2ap_diag.sharpness import UNRELIABLE

DATA_COLUMNS = ("panel", "series", "metric", "x", "seed", "value", "interval_low", "interval_high")


@dataclass
class Drawing:
    """What a figure shows.

    Attributes:
        caption: sentences.
        rows: every number drawn, by :data:`DATA_COLUMNS`; accuracies have their 95 % Wilson interval.
        notes: what a reader has to be warned of.
    """

    caption: list[str]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def data(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(DATA_COLUMNS))

    def add(self, panel: str, series: str, metric: str, by_seed: pd.DataFrame) -> None:
        """Record curves, a column for each seed."""
        for seed in by_seed:
            drawn = by_seed[seed].dropna()
            self.rows += [(panel, series, metric, x, seed, y, None, None) for x, y in drawn.items()]

    def add_reading(self, panel: str, series: str, metric: str, x: Any, reading: Reading) -> None:
        """Record one point or bar."""
        for seed, value in reading.by_seed.items():
            interval = reading.intervals.get(seed, (None, None))
            self.rows.append((panel, series, metric, x, seed, value, *interval))


@dataclass(frozen=True)
class Curves:
    """A metric of each arm over epochs, a column for each seed; of arms that have runs.

    Attributes:
        warmup: epochs without perturbation in S2AP's runs.
    """

    arms: Mapping[str, pd.DataFrame]
    warmup: int

    @property
    def difference(self) -> pd.DataFrame:
        """The first arm's minus the second's, of the seeds that both have; empty if there is none."""
        if len(self.arms) < 2:
            return pd.DataFrame()
        orig, s2ap = (self.arms[arm] for arm in ("orig", "s2ap"))
        seeds = orig.columns.intersection(s2ap.columns)
        return (orig[seeds] - s2ap[seeds]).dropna(how="all")


@dataclass(frozen=True)
class Spectrum:
    """lambda_max of both arms over epochs.

    Attributes:
        metric: its name in ``metrics.csv``.
        live: whether it is over the scores of channels that keep a weight, or over all as the paper defines it. A
            channel without one has eigenvalues of the order of 1 / eps of its BatchNorm, beside which nothing shows.
        residuals: relative residuals of the same readings; of runs whose ``metrics.csv`` has none there are none.
    """

    metric: str
    live: bool
    curves: Curves
    residuals: Curves

    def unconverged(self, arm: str) -> pd.Index:
        """Give the epochs at which the mean residual of a seed's readings is too large to rely on."""
        by_seed = self.residuals.arms.get(arm, pd.DataFrame())
        return by_seed.index[(by_seed > UNRELIABLE).any(axis="columns")]


def runs_of(entry: Entry, library: Library, cell: Cell, need: str, drawing: Drawing) -> dict[str, dict[int, Run]]:
    """Find the runs of a setting by arm and seed; what is odd about them is noted."""
    runs = {arm: library.find(cell, arm, need) for arm in entry.arms}
    mixed = mixed_settings({arm: by_seed.values() for arm, by_seed in runs.items() if by_seed})
    if mixed:
        drawing.notes.append(f"{cell.name}: its runs differ in {', '.join(mixed)}")
    return runs


def curves_of(runs: Mapping[str, Mapping[int, Run]], read: Callable[[Run], pd.Series]) -> Curves:
    """Read a curve of each of a setting's runs; seeds and arms without a reading are left out."""
    warmup = max((run.config.minimizer.warmup for run in runs.get("s2ap", {}).values()), default=0)
    columns = {arm: {seed: read(run) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    arms = {arm: pd.DataFrame(by_seed).dropna(axis="columns", how="all") for arm, by_seed in columns.items()}
    return Curves({arm: by_seed for arm, by_seed in arms.items() if not by_seed.empty}, warmup)


def stability_of(entry: Entry, library: Library, cell: Cell, drawing: Drawing) -> Curves:
    """Read h of each epoch's mask."""
    return curves_of(runs_of(entry, library, cell, "masks", drawing), lambda run: run.stability)


def spectra_of(entry: Entry, library: Library, cell: Cell, drawing: Drawing) -> list[Spectrum]:
    """Read lambda_max in the mode of BatchNorm asked for; a spectrum that no run tracked has no curves."""
    runs = runs_of(entry, library, cell, "curvature", drawing)
    spectra = []
    for suffix, live in (("_live", True), ("", False)):
        metric, residual = (f"{name}{suffix}_{library.batch_norm}" for name in ("lambda_max", "residual"))
        curves, residuals = (curves_of(runs, partial(Run.tracked, metric=name)) for name in (metric, residual))
        spectra.append(Spectrum(metric, live, curves, residuals))
    return spectra
