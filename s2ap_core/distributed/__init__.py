"""Several processes on one run: torchrun starts them, each takes its part of every batch."""

from s2ap_core.distributed.batch_norm import batch_statistics
from s2ap_core.distributed.group import (
    add_up,
    device_of,
    from_first,
    gather,
    launched,
    leave,
    lost_process,
    process_group,
    processes_here,
    rank,
    restarted,
    speaks_first,
    wait,
    world,
)
from s2ap_core.distributed.share import Share, draw, gather_in_order, own_items, rows, term

__all__ = [
    "Share",
    "add_up",
    "batch_statistics",
    "device_of",
    "draw",
    "from_first",
    "gather",
    "gather_in_order",
    "launched",
    "leave",
    "lost_process",
    "own_items",
    "process_group",
    "processes_here",
    "rank",
    "restarted",
    "rows",
    "speaks_first",
    "term",
    "wait",
    "world",
]
