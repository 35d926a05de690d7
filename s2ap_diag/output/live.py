"""How runs stand, on the terminal: a row of a table for each, or a run's curves as sparklines."""

import math
from collections.abc import Callable, Mapping, Sequence

from rich.console import Group
from rich.text import Text

from s2ap_core.runs import course
from s2ap_diag.output.tables import Table, make_table, show
from s2ap_diag.reading.snapshot import NEAR, Snapshot

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32
"""Characters of a sparkline."""


def table_of(snapshots: Sequence[Snapshot], names: Sequence[str], title: str) -> Table:
    """Make a row of each run that is not complete, or of all where all are."""
    unfinished = [one for one in zip(names, snapshots, strict=True) if one[1].state != "done"]
    shown = unfinished or list(zip(names, snapshots, strict=True))
    columns = ["run", "stage", "left", "loss", "live λ", "flips", "h"]
    rows = []
    for name, one in shown:
        last = one.last
        rows.append([name, one.stands, one.time_left, *(last.get(column, "–") for column in columns[3:])])
    return make_table(title, columns, rows, gives_way=["h", "flips", "loss"])


def panel(snapshot: Snapshot, warnings: Sequence[str]) -> Group:
    """Lay out a run: how it stands, its curves by epoch, and what is wrong with it."""
    config = snapshot.config
    method = f"{config.network.name}, {config.method.name}, {course.arm(config)}, keep {config.method.keep:g}"
    head = f"{snapshot.path}: {method} on {config.data.name}, seed {config.seed}"
    mode = f" (BatchNorm: {snapshot.mode})" if snapshot.mode else ""
    share = 100 / snapshot.entries if snapshot.entries else math.nan
    curves: list[tuple[str, Mapping[int, float], Callable[[float], str]]] = [
        ("training loss", snapshot.loss, show),
        (f"live λ_max{mode}", snapshot.curves["lambda_max_live"], show),
        ("flips per update", snapshot.curves["flips"], lambda flips: f"{flips:.4g} ({share * flips:.2g} %)"),
        ("h", snapshot.curves["h"], show),
        (f"scores within {NEAR:.0%} of the threshold", snapshot.curves["near"], lambda near: f"{100 * near:.3g} %"),
    ]
    rows = [[name, said(list(c.values())[-1]), sparkline(list(c.values()))] for name, c, said in curves if c]
    table = [make_table("", ["", "last", "by epoch"], rows)] if rows else []
    stands = " · ".join(filter(None, (snapshot.stands, snapshot.time_left)))
    return Group(Text(head), Text(stands), *table, *(Text(f"warning: {text}") for text in warnings))


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Draw values as bars of eight heights, the least the lowest; of more than ``width`` the last ones.

    >>> sparkline([1, 2, 4, 8])
    '▁▂▄█'
    """
    shown = list(values)[-width:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)
