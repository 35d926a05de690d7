"""How much of what is tried over and over: little in every session of the tests, more in a soak of so many minutes."""

import os
import random
import time

MINUTES = float(os.environ.get("S2AP_SOAK", 0))
"""Of the soak; 0 in an ordinary session."""

SOAK = MINUTES > 0
BEGAN = time.monotonic()

SEED = random.SystemRandom().randrange(10**6) if SOAK else 0
"""Of what is drawn, and named where something is lost."""


def amount(ordinary: int, of_half_an_hour: int) -> int:
    """How often to try something: more in a longer soak, in proportion."""
    return max(1, round(of_half_an_hour * MINUTES / 30)) if SOAK else ordinary


def time_left() -> bool:
    """Whether to go on: a soak ends with its minutes, whatever is done by then."""
    return not SOAK or time.monotonic() - BEGAN < 60 * MINUTES
