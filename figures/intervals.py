"""A mean over folds with its 95 % t-interval, as records of tables hold it and as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from s2ap_diag.comparison.statistics import paired_difference


def with_interval(column: str, by_fold: Sequence[float]) -> dict[str, Any]:
    """Return the mean as ``column``, the interval as ``column, low`` and ``column, high``: None below three folds."""
    mean = paired_difference(by_fold)
    low, high = mean.interval or (None, None)
    return {column: mean.mean, f"{column}, low": low, f"{column}, high": high}


def shown(row: Mapping[str, Any], column: str, shape: str = "{:.1f}") -> str:
    """Write what :func:`with_interval` put into a row, a dash where there is nothing."""
    if pd.isna(row.get(column)):
        return "-"
    low, high = row[f"{column}, low"], row[f"{column}, high"]
    mean = shape.format(row[column])
    return mean if pd.isna(low) else f"{mean} [{shape.format(low)}, {shape.format(high)}]"
