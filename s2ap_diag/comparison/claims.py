"""What rendered tables claim: the CSVs of ``python -m figures``, in which an arm may be marked the best."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from s2ap_core.errors import InputError
from s2ap_diag.comparison.finding import Finding

ROW = ("table", "data", "network", "method", "sparsity", "flops_reduction", "severity", "rho", "metric")
"""Columns that the records of one row of a table share; those of its arms and of their difference differ in ``arm``."""

CLAIM = ("arm", "mark", "interval_low", "interval_high")

BEST = "best"

LOWER_IS_BETTER = ("loss_difference",)
"""Metrics by which the arm with less is the best."""

DIFFERENCE = " - "
"""Stands between two arms where a record is of their difference, the first minus the second."""


def tables_in(folder: Path) -> list[Path]:
    """Find the tables right in a folder that can claim something, in the order of their names.

    Raises:
        InputError: if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that `python -m figures --out` wrote")
    return [file for file in sorted(folder.glob("*.csv")) if _claims_something(file)]


def claims(table: Path) -> Iterator[Finding]:
    """Hold each arm that is marked the best to the interval of the difference, which has to exclude 0.

    Raises:
        InputError: if the table cannot be read.
    """
    rows = _read(table).to_dict("records")
    intervals = {
        _row(row): (row["arm"].partition(DIFFERENCE)[0], _number(row["interval_low"]), _number(row["interval_high"]))
        for row in rows
        if DIFFERENCE in row["arm"]
    }
    for row in rows:
        if row["mark"] != BEST:
            continue
        ahead, low, high = intervals.get(_row(row), ("", math.nan, math.nan))
        known = low <= high
        more_is_claimed = (row["arm"] == ahead) != (row["metric"] in LOWER_IS_BETTER)
        excluded = low > 0 if more_is_claimed else high < 0  # of no interval, both are NaN
        lacking = "may be 0 or against it" if known else "has no interval"
        remedy = (
            f"{row['arm']} is called the best, and the difference {lacking}: "
            "add seeds with `s2ap-diag run CONFIG --seed N` and render anew: `python -m figures --runs RUNS --out "
            f"{table.parent} --only {row['table']}`"
        )
        where = ", ".join(filter(None, (str(table), *(str(row[key]) for key in ROW[1:]))))
        value = f"[{low:.4g}, {high:.4g}]" if known else None
        yield Finding.of(where, "winner", excluded, value, 0, remedy)


def _claims_something(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        columns = pd.read_csv(file, nrows=0).columns
    except (OSError, ValueError):  # of another kind of CSV
        return False
    return {*ROW, *CLAIM} <= set(columns)


def _read(table: Path) -> pd.DataFrame:
    """Read a table as text, empty where there is nothing."""
    try:
        return pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{table}: cannot be read ({error}); render it anew with `python -m figures`") from error


def _row(record: dict[Any, Any]) -> tuple[str, ...]:
    return tuple(record[key] for key in ROW)


def _number(text: str) -> float:
    """Read a number, NaN of anything else."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
