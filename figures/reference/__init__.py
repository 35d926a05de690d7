"""The numbers the paper printed, one CSV per table in tidy long form, and what can be recomputed from them.

One row per printed number. Columns (`COLUMNS`), the same in every file, empty where they do not apply:

- ``table``: ``table1`` ... ``table13``
- ``dataset``: ``cifar10``, ``svhn``, ``imagenet``, ``cifar10c``
- ``network``: ``resnet18``, ``vgg16_bn``, ``wrn_28_4``, ``resnet50``, ``vit``
- ``method``: ``harp``, ``hydra``, ``rlth``; empty for dense networks (Table 6) and for times, which the
  paper does not attribute to one method (Table 7)
- ``minimizer``: ``orig``, ``s2ap``, ``awp``; empty for gap and overhead, which compare two of them
- ``sparsity``: percent of weights removed; empty where the table is not by sparsity or averages over it
- ``flops_reduction``: how many times fewer FLOPs (Table 9)
- ``severity``: of the corruptions (Table 11)
- ``rho``: radius of the score perturbation (Table 13)
- ``metric``: ``clean_accuracy``, ``robust_accuracy``, ``overhead`` (percent), ``gap`` (percentage points),
  ``hours``, ``loss_difference``
- ``value``, ``std``: as printed; an empty ``value`` is a cell that the available text of the paper lost

What the text leaves open and how it is read here:

- Tables 5 and 12 are of the mask on the pretrained weights, before finetuning; their
  ``robust_accuracy`` is not that of Tables 1 and 2. Table 9 does not name its metric; its values are
  read as robust accuracy.
- Table 6 lost its network names; its rows are taken in the order that Tables 1, 2 and 7 share.
- Table 13 lost the last digits of its right-hand column (HYDRA, S2AP), which is empty throughout, its two
  last rows, and part of the others: a line whose rho cannot be read, a cell with fewer numbers than its
  line has rows, and a number that slid in from another row are empty.
"""

from pathlib import Path

import pandas as pd

from s2ap_core.errors import InputError

COLUMNS = (
    "table",
    "dataset",
    "network",
    "method",
    "minimizer",
    "sparsity",
    "flops_reduction",
    "severity",
    "rho",
    "metric",
    "value",
    "std",
)
"""Columns of every table, in order."""

CELL = ("dataset", "network", "method", "sparsity", "flops_reduction", "severity", "rho")
"""Columns that name a setting; its arms differ in ``minimizer`` only."""

TABLES = tuple(f"table{number}" for number in range(1, 14))
"""Ids of the tables."""

GAP_TOLERANCE = 0.025
"""Percentage points: four accuracies and the gap itself, each rounded to 0.005 at most."""

OVERHEAD_TOLERANCE = 0.01
"""Percent: the paper cuts or rounds the second decimal of a ratio of its printed hours."""

_NUMBERS = ("sparsity", "flops_reduction", "severity", "rho", "value", "std")
_TYPES = {name: "float64" if name in _NUMBERS else "object" for name in COLUMNS}


def load(table: str) -> pd.DataFrame:
    """Return a table of the paper in long form, columns `COLUMNS`, in the paper's order.

    Numbers are float64, what is empty is NaN. Raises `InputError` for an id that is not in `TABLES`.
    """
    if table not in TABLES:
        raise InputError(f"unknown table '{table}': choose one of {', '.join(TABLES)}")
    return pd.read_csv(Path(__file__).with_name(f"{table}.csv"), dtype=_TYPES)


def recomputed_gaps(table: str) -> pd.DataFrame:
    """Return the printed gap of each setting beside the one that follows from the printed accuracies.

    The gap is (clean - robust of Orig.) - (clean - robust of S2AP), in percentage points: positive
    where S2AP brings the two accuracies closer together (Sect. 4.2). Columns: those of `CELL`,
    ``printed``, ``recomputed``. No rows for a table that prints no gap, that is, all but Tables 1, 2
    and 8. Raises `InputError` for an unknown id.
    """
    numbers = load(table)
    gaps = _select(numbers, "gap", "printed")
    for arm in ("orig", "s2ap"):
        for metric in ("clean_accuracy", "robust_accuracy"):
            gaps = gaps.merge(_select(numbers, metric, f"{arm}_{metric}", arm), on=list(CELL), how="left")
    orig = gaps["orig_clean_accuracy"] - gaps["orig_robust_accuracy"]
    s2ap = gaps["s2ap_clean_accuracy"] - gaps["s2ap_robust_accuracy"]
    return gaps[[*CELL, "printed"]].assign(recomputed=(orig - s2ap).round(2))


def recomputed_overheads(table: str = "table7") -> pd.DataFrame:
    """Return the printed overhead beside both readings that follow from the printed hours, in percent.

    Columns: those of `CELL`, ``printed``, ``over_orig`` = 100 (S2AP - Orig.) / Orig. and ``over_s2ap`` =
    100 (S2AP - Orig.) / S2AP. No rows for a table that prints no overhead, that is, all but Table 7.
    Raises `InputError` for an unknown id.
    """
    numbers = load(table)
    rows = _select(numbers, "overhead", "printed")
    for arm in ("orig", "s2ap"):
        rows = rows.merge(_select(numbers, "hours", arm, arm), on=list(CELL), how="left")
    more = 100 * (rows["s2ap"] - rows["orig"])
    return rows[[*CELL, "printed"]].assign(over_orig=more / rows["orig"], over_s2ap=more / rows["s2ap"])


def disagreements(table: str) -> pd.DataFrame:
    """Return the cells of a table in which the paper disagrees with itself.

    A gap disagrees where it differs from `recomputed_gaps` by more than `GAP_TOLERANCE`, an overhead
    where it is not the time that S2AP adds over Orig., within `OVERHEAD_TOLERANCE`. Columns: those of
    `CELL`, ``metric``, ``printed``, ``recomputed``. No rows where all agrees or nothing can be
    recomputed. Raises `InputError` for an unknown id.
    """
    gaps = recomputed_gaps(table).assign(metric="gap")
    gaps = gaps[(gaps["printed"] - gaps["recomputed"]).abs() > GAP_TOLERANCE]
    times = recomputed_overheads(table).assign(metric="overhead").rename(columns={"over_orig": "recomputed"})
    times = times[(times["printed"] - times["recomputed"]).abs() > OVERHEAD_TOLERANCE]
    columns = [*CELL, "metric", "printed", "recomputed"]
    return (times if gaps.empty else gaps)[columns].reset_index(drop=True)


def s2ap_behind(table: str) -> pd.DataFrame:
    """Return the settings in which S2AP's robust accuracy is below that of Orig., both in percent.

    Columns: those of `CELL`, ``orig``, ``s2ap``. Raises `InputError` for an unknown id.
    """
    numbers = load(table)
    arms = _select(numbers, "robust_accuracy", "orig", "orig").merge(
        _select(numbers, "robust_accuracy", "s2ap", "s2ap"), on=list(CELL)
    )
    return arms[arms["s2ap"] < arms["orig"]].reset_index(drop=True)


def _select(numbers: pd.DataFrame, metric: str, name: str, minimizer: str | None = None) -> pd.DataFrame:
    """Select the values of a metric, of one arm or of none, as column `name` beside the columns of `CELL`."""
    arm = numbers["minimizer"].isna() if minimizer is None else numbers["minimizer"] == minimizer
    return numbers.loc[(numbers["metric"] == metric) & arm, [*CELL, "value"]].rename(columns={"value": name})
