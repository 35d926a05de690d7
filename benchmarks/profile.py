"""What an iteration's time goes into, ours and the published step's, and the ratio of the two."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.iteration import published_search
from benchmarks.measure import Row, Setting, at_least
from benchmarks.worlds import images, network, search

KINDS = {
    "masks": ("TopK", "SortedMask"),
    "convolutions": ("convolution",),
    "batch norm": ("batch_norm",),
    "optimizer": ("Optimizer.",),
}
"""Parts of the names of events; an event counts with the outermost one that has a kind."""


def run(setting: Setting) -> list[Row]:
    x, y = images(setting.batch(64), setting)
    ours = search(network("resnet18", setting), x)
    published_step = published_search("resnet18", x, y, setting)
    ours.iterate(x, y)  # warms up the convolutions of both
    seconds = {"ours": _by_kind(lambda: ours.iterate(x, y)), "published": _by_kind(published_step)}
    whole = {who: sum(by_kind.values()) for who, by_kind in seconds.items()}
    share = {kind: 100 * seconds["ours"][kind] / whole["ours"] for kind in (*KINDS, "other")}
    where = f"resnet18, batch {len(x)}"
    behind = f"{whole['published']:.3g} s / {whole['ours']:.3g} s, {share['convolutions']:.0f} % of ours convolutions"
    rows = [Row(f"published step over ours, {where}", whole["published"] / whole["ours"], "x", at_least(5.0), behind)]
    for kind in share:
        told = (
            f"{who} {by_kind[kind]:.3g} s ({100 * by_kind[kind] / whole[who]:.1f} %)"
            for who, by_kind in seconds.items()
        )
        rows.append(Row(f"of our iteration, {where}: {kind}", share[kind], "%", None, ", ".join(told)))
    return rows


def _by_kind(function: Callable[[], object]) -> dict[str, float]:
    """Sum the seconds that the CPU spent in each kind of operation."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        function()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        seconds[_kind(event)] += event.self_cpu_time_total / 1e6
    return seconds


def _kind(event: Any) -> str:
    names = [ancestor.name for ancestor in _lineage(event)]
    for name in reversed(names):
        for kind, parts in KINDS.items():
            if any(part in name for part in parts):
                return kind
    return "other"


def _lineage(event: Any) -> Iterator[Any]:
    """Name the event and what it was called by, from the inside out."""
    while event is not None:
        yield event
        event = event.cpu_parent
