"""The numbers of a table in long form, a record for each: what its CSV holds."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from figures.catalogue import Cell, Entry
from figures.matching import Library
from figures.numbers import Line, disagrees, measured_gap, printed
from figures.verdicts import Verdict

RECORD = (
    "table", "data", "network", "method", "arm", "sparsity", "flops_reduction", "severity", "rho", "gamma", "metric",
    "seed", "measured", "std", "seeds", "interval_low", "interval_high", "p", "adjusted_p", "mark", "paper",
    "paper_std", "difference", "paper_disagrees",
)  # fmt: skip
"""Columns of a table's CSV, empty where they do not apply; accuracies, gaps and differences in percent."""


def frame_of(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make records a frame with the columns of :data:`RECORD`."""
    return pd.DataFrame(records, columns=list(RECORD)).astype({"seed": "Int64", "seeds": "Int64"})


def about(entry: Entry, cell: Cell, **values: Any) -> dict[str, Any]:
    """Fill a record with what it says of its setting, and these values."""
    about = {
        "table": entry.id,
        "data": cell.data,
        "network": cell.network,
        "method": "" if cell.method == "dense" else cell.method,
        "sparsity": cell.sparsity,
        "flops_reduction": cell.flops_reduction,
        "severity": entry.severity,
    }
    return {**about, **values}


def difference(entry: Entry, line: Line, arm: str, metric: str) -> float:
    """Subtract the printed number from the measured one; NaN where one is missing or they are of different data."""
    if arm not in line.readings or not line.cell.comparable:
        return math.nan
    return line.readings[arm][metric].mean - printed(entry, line.cell, metric, printed_arm(arm), line.rho)[0]


def printed_arm(arm: str) -> str | None:
    """Name an arm as the printed numbers do, among which dense networks have none."""
    return None if arm == "dense" else arm


def records_of(entry: Entry, line: Line, verdict: Verdict, library: Library) -> list[dict[str, Any]]:
    """Write a row of a comparing table as records."""
    records = [_record(entry, line, library, arm, metric, verdict) for arm in entry.arms for metric in entry.metrics]
    if entry.gap:
        measured, (value, _) = measured_gap(line, entry.arms), printed(entry, line.cell, "gap", None)
        records.append(
            about(
                entry,
                line.cell,
                metric="gap",
                measured=measured,
                paper=value,
                difference=measured - value if line.cell.comparable else None,
                paper_disagrees=disagrees(entry, line.cell, "gap"),
            )
        )
    return [*records, *_compared(entry, line.cell, verdict)]


def _record(entry: Entry, line: Line, library: Library, arm: str, metric: str, verdict: Verdict) -> dict[str, Any]:
    """Write one metric of one arm."""
    value, std = printed(entry, line.cell, metric, printed_arm(arm), line.rho)
    reading = line.readings.get(arm, {}).get(metric)
    low, high = (math.nan, math.nan) if reading is None else reading.interval
    return about(
        entry,
        line.cell,
        arm=arm,
        rho=line.rho,
        gamma=None if arm in ("orig", "dense") else library.gamma(line.cell),
        metric=metric,
        measured=None if reading is None else reading.mean,
        std=None if reading is None else reading.std,
        seeds=0 if reading is None else len(reading.by_seed),
        interval_low=low,
        interval_high=high,
        mark="best" if arm == verdict.better and metric == entry.metrics[-1] else "",
        paper=value,
        paper_std=std,
        difference=difference(entry, line, arm, metric),
    )


def _compared(entry: Entry, cell: Cell, verdict: Verdict) -> Iterator[dict[str, Any]]:
    """Write how much the second arm is above the first, and McNemar's p of each seed."""
    if verdict.difference is None:
        return
    arm = f"{entry.arms[1]} - {entry.arms[0]}"
    low, high = verdict.difference.interval or (math.nan, math.nan)
    yield about(
        entry,
        cell,
        arm=arm,
        metric=entry.metrics[-1],
        measured=verdict.difference.mean,
        std=verdict.difference.sd,
        seeds=len(verdict.difference.by_unit),
        interval_low=low,
        interval_high=high,
        p=verdict.difference.p,
        adjusted_p=verdict.adjusted_p,
        mark="beyond chance" if verdict.better else "",
    )
    for seed, p in verdict.mcnemar.items():
        yield about(entry, cell, arm=arm, metric="mcnemar_p", seed=seed, measured=p)
