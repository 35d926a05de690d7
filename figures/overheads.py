"""Table 7: hours of the search, and what S2AP adds to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from figures.captions import gammas, substituted
from figures.catalogue import DATA, METHODS, Cell, Entry, in_words
from figures.matching import Library
from figures.numbers import disagrees, printed
from figures.records import about, frame_of
from figures.rendered_table import RenderedTable, Text
from figures.wording import NOT_RUN, PAPER, signed
from s2ap_diag.reading.results import Run

SECONDS_PER_HOUR = 3600

PAPER_HEADS = ["Orig. (h)", "S2AP (h)", "Overhead (%)"]
MEASURED_HEADS = ["Orig. (h)", "S2AP (h)", "over Orig. (%)", "over S2AP (%)", "after warm-up (%)", "Pairs"]


@dataclass(frozen=True)
class _Spread:
    """A mean with its standard deviation; NaN where there is none."""

    mean: float
    std: float

    def text(self, shown: Callable[[float], str]) -> str:
        return shown(self.mean) if math.isnan(self.std) else f"{shown(self.mean)} ± {shown(self.std).lstrip('+')}"


Pairs = dict[int, tuple[Run, Run]]
"""Both arms' runs by seed."""


@dataclass(frozen=True)
class _Setting:
    """A row: the time that a network, data set and method took, over sparsities and seeds.

    Attributes:
        cells: one for each sparsity, and ``pairs`` the searches of each.
        measured, paper: by ``orig``, ``s2ap`` (hours) and ``over_orig`` and the like (percent).
        disagrees: whether the paper's overhead does not follow from its hours.
    """

    cells: Sequence[Cell]
    pairs: Sequence[Pairs]
    measured: dict[str, _Spread]
    paper: dict[str, float]
    disagrees: bool

    @property
    def every_pair(self) -> list[tuple[Run, Run]]:
        return [pair for by_seed in self.pairs for pair in by_seed.values()]

    @property
    def differences(self) -> dict[str, float]:
        """Measured minus printed, empty where they are of different data sets."""
        if not self.cells[0].comparable:
            return {}
        return {name: self.measured[name].mean - value for name, value in self.paper.items()}


def overheads(entry: Entry, library: Library) -> RenderedTable:
    """Make Table 7: hours of the search, and the time that S2AP adds over Orig. and as a share of its own."""
    names = dict.fromkeys((cell.network, cell.data, cell.method, cell.printed) for cell in entry.cells)
    settings = [
        _setting(entry, library, [c for c in entry.cells if (c.network, c.data, c.method, c.printed) == name])
        for name in names
    ]
    comparable = all(cell.comparable for cell in entry.cells)
    heads = [
        ("", ["Network", "Data", "Method", "Sparsities"]),
        ("measured", MEASURED_HEADS),
        ("paper", PAPER_HEADS),
        *([("measured − paper", PAPER_HEADS)] if comparable else []),
    ]
    return RenderedTable(
        id=entry.id,
        heading=entry.heading,
        groups=heads,
        rows=[_row(setting, comparable) for setting in settings],
        caption=[*_caption(settings), *substituted(entry), *gammas(entry, library)],
        records=frame_of([record for setting in settings for record in _records(entry, setting)]),
    )


def _setting(entry: Entry, library: Library, cells: Sequence[Cell]) -> _Setting:
    pairs = [_searches(library, cell, entry.arms) for cell in cells]
    cell = cells[0]
    return _Setting(
        cells,
        pairs,
        _times([pair for by_seed in pairs for pair in by_seed.values()]),
        {
            "orig": printed(entry, cell, "hours", "orig")[0],
            "s2ap": printed(entry, cell, "hours", "s2ap")[0],
            "over_orig": printed(entry, cell, "overhead", None)[0],
        },
        disagrees(entry, cell, "overhead"),
    )


def _row(setting: _Setting, comparable: bool) -> list[Text]:
    cell, measured, paper = setting.cells[0], setting.measured, setting.paper
    budgets = [c.budget for c, by_seed in zip(setting.cells, setting.pairs, strict=True) if by_seed]
    names = (in_words(cell.network), DATA[cell.data], METHODS[cell.method], ", ".join(budgets))
    return [
        *map(Text, names),
        *(Text(measured[name].text(_hours) or NOT_RUN) for name in ("orig", "s2ap")),
        *(Text(measured[name].text(_percent)) for name in ("over_orig", "over_s2ap", "after_warmup")),
        Text(str(len(setting.every_pair) or "")),
        *(Text(_hours(paper[name])) for name in ("orig", "s2ap")),
        Text(signed(paper["over_orig"]), mark=PAPER if setting.disagrees else ""),
        *(Text(signed(value)) for value in (setting.differences.values() if comparable else ())),
    ]


def _records(entry: Entry, setting: _Setting) -> list[dict[str, Any]]:
    return [
        {
            **about(entry, setting.cells[0], arm=name if name in entry.arms else None),
            "sparsity": None,
            "metric": "hours" if name in entry.arms else f"overhead_{name}",
            "measured": value.mean,
            "std": value.std,
            "seeds": min((len(by_seed) for by_seed in setting.pairs if by_seed), default=0),
            "paper": setting.paper.get(name),
            "difference": setting.differences.get(name),
            "paper_disagrees": setting.disagrees if name == "over_orig" else None,
        }
        for name, value in setting.measured.items()
    ]


def _caption(settings: Sequence[_Setting]) -> list[str]:
    runs = [run for setting in settings for pair in setting.every_pair for run in pair]
    devices = sorted({str(run.environment.get("device")) for run in runs})
    return [
        "Time of the search's epochs, mean ± standard deviation over pairs of searches, one of each arm, that share "
        "sparsity and seed" + (f", on {', '.join(devices)}." if devices else "."),
        "Overhead: 100 (S2AP − Orig.) / Orig., and as a share of S2AP's time; after warm-up: over Orig., of the epochs "
        "without warm-up alone, as the paper times them.",
        f"{PAPER} the paper's overhead is not the one over Orig. that follows from its hours. The paper does not say "
        "which method it timed.",
    ]


def _searches(library: Library, cell: Cell, arms: Sequence[str]) -> Pairs:
    """Find both arms' runs of the seeds that both have."""
    first, second = (library.find(cell, arm, "timing") for arm in arms)
    return {seed: (first[seed], second[seed]) for seed in first if seed in second}


def _times(pairs: Sequence[tuple[Run, Run]]) -> dict[str, _Spread]:
    """Compute hours of each arm and what the second adds in percent: of the mean times, and its spread over pairs."""
    if not pairs:
        return dict.fromkeys(("orig", "s2ap", "over_orig", "over_s2ap", "after_warmup"), _Spread(math.nan, math.nan))
    whole = np.array([[seconds(run) for run in pair] for pair in pairs]).T
    # Both arms' epochs after S2AP's warm-up: Orig. has none, whatever its config says.
    later = np.array([[seconds(run, pair[1].config.minimizer.warmup) for run in pair] for pair in pairs]).T

    def spread(of: Callable[[Any, Any], Any], times: np.ndarray) -> _Spread:
        std = float(np.std(of(*times), ddof=1)) if len(pairs) > 1 else math.nan
        return _Spread(float(of(*times.mean(axis=1))), std)

    return {
        "orig": spread(lambda orig, s2ap: orig / SECONDS_PER_HOUR, whole),
        "s2ap": spread(lambda orig, s2ap: s2ap / SECONDS_PER_HOUR, whole),
        "over_orig": spread(lambda orig, s2ap: 100 * (s2ap / orig - 1), whole),
        "over_s2ap": spread(lambda orig, s2ap: 100 * (1 - orig / s2ap), whole),
        "after_warmup": spread(lambda orig, s2ap: 100 * (s2ap / orig - 1), later),
    }


def seconds(run: Run, warmup: int = 0) -> float:
    """Sum what the search's epochs after the first ``warmup`` took; NaN if there are none."""
    rows = run.timing[(run.timing["stage"] == "prune") & (run.timing["epoch"] > warmup)]
    return float(rows["seconds"].sum()) if len(rows) else math.nan


def _hours(hours: float) -> str:
    return "" if math.isnan(hours) else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


def _percent(share: float) -> str:
    return signed(share, 1)
