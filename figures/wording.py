"""How numbers, and what is odd about them, are shown in a table."""

import math

from s2ap_diag.comparison.statistics import PairedDifference

NOT_RUN = "not run"
CHANCE, NETWORKS_DIFFER, PAPER = "*", "≠", "‡"


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # -0.0 becomes 0.0


def spanned(difference: PairedDifference, digits: int = 2) -> str:
    """Write a difference with its 95 % interval, where it has one."""
    mean = signed(difference.mean, digits)
    if difference.interval is None:
        return mean
    low, high = difference.interval
    return f"{mean} [{signed(low, digits)}, {signed(high, digits)}]"
