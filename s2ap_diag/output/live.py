"""How runs stand, on the terminal: a line of text for each, and a run's curves as sparklines."""

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


def compact(snapshot: Snapshot, name: str = "") -> str:
    """Say in a line how a run stands: stage, time left, and the last of each reading."""
    readings = [f"{label} {value}" for label, value in _last(snapshot).items()]
    return " · ".join(filter(None, [name, _stage(snapshot), time_left(snapshot), *readings]))


def table_of(snapshots: Sequence[Snapshot], names: Sequence[str], title: str) -> Table:
    """Make a row of each run that is not complete, or of all where all are."""
    unfinished = [one for one in zip(names, snapshots, strict=True) if one[1].state != "done"]
    shown = unfinished or list(zip(names, snapshots, strict=True))
    columns = ["run", "stage", "left", "loss", "live λ", "flips", "h"]
    rows = []
    for name, one in shown:
        last = _last(one)
        rows.append([name, _stage(one), time_left(one), *(last.get(column, "–") for column in columns[3:])])
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
    stands = " · ".join(filter(None, (_stage(snapshot), time_left(snapshot))))
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


def time_left(snapshot: Snapshot) -> str:
    """Say how long a run still takes; nothing of one that nobody works on, or that has just begun."""
    if snapshot.state != "running" or snapshot.left is None:
        return ""
    minutes = snapshot.left / 60
    if minutes < 1:
        return "under a minute left"
    return f"{minutes:.0f} min left" if minutes < 100 else f"{minutes / 60:.1f} h left"


def _stage(snapshot: Snapshot) -> str:
    """Name the stage with its epochs; a complete run is done, and one that nobody works on has stopped."""
    if snapshot.state == "done":
        return "done"
    said = f"{snapshot.stage} {snapshot.done}/{snapshot.total}" if snapshot.total else snapshot.stage
    return said if snapshot.state == "running" else f"stopped at {said}"


def _last(snapshot: Snapshot) -> dict[str, str]:
    """Give the last of each reading that there is."""
    last = {"loss": snapshot.loss, "live λ": snapshot.curves["lambda_max_live"], "h": snapshot.curves["h"]}
    found = {name: f"{list(curve.values())[-1]:.3g}" for name, curve in last.items() if curve}
    if snapshot.curves["flips"] and snapshot.entries:
        share = 100 * list(snapshot.curves["flips"].values())[-1] / snapshot.entries
        found = {**found, "flips": f"{share:.2g} %"}
    return {name: found[name] for name in ("loss", "live λ", "flips", "h") if name in found}
