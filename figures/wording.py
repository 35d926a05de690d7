"""How numbers, and what is odd about them, are shown in a table."""

import math

NOT_RUN = "not run"
TIE, CHANCE, PAPER = "†", "*", "‡"


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # -0.0 becomes 0.0
