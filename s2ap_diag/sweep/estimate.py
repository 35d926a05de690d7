"""The work of a sweep in multiply-accumulates, and what it takes in hours and bytes.

The unit is a forward and a backward pass. Counts follow from the config; what a pass costs comes from the
benchmark's seconds per iteration on the machine in question, or from the paper's Table 7.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.config import Config
from s2ap_core.data import Split
from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input
from s2ap_core.models import build
from s2ap_core.runs.disk import files_of_run, files_taken_over
from s2ap_core.runs.passes import image_passes, passes_of_a_loss, passes_of_a_step
from s2ap_diag.sweep.plan import Task


class Images(NamedTuple):
    """Number and shape of a data set's images, known without its files."""

    train: int
    val: int
    test: int
    channels: int
    size: int
    classes: int


IMAGES = {
    "digits": Images(1_197, 200, 400, 1, 8, 10),
    "cifar10": Images(49_000, 1_000, 10_000, 3, 32, 10),
    "svhn": Images(72_257, 1_000, 26_032, 3, 32, 10),
    "imagenet": Images(1_268_355, 12_812, 50_000, 3, 224, 1000),
}

_CIFAR = 20 * 50_000 * 12
_IMAGENET = 10 * 1_281_167 * 2

PAPER = {
    "resnet18": ("cifar10", 3.27, _CIFAR),
    "vgg16_bn": ("cifar10", 1.41, _CIFAR),
    "wrn_28_4": ("cifar10", 6.12, _CIFAR),
    "resnet50": ("imagenet", 15.08, _IMAGENET),
}
"""Table 7: hours of a search by the published code on A6000s, and its passes. On CIFAR-10 20 epochs with ten steps
of the attack and two passes of the loss, on ImageNet 10 epochs with one and one."""


PRODUCTS = 12
"""Hessian-vector products of one spectrum in ``sharpness``: Lanczos on digits takes ten, the error and the symmetry
defect two."""


@dataclass(frozen=True)
class Size:
    """The size of a network on a data set: parameters, and multiply-accumulates of an image's forward pass."""

    macs: float
    parameters: int


@cache
def size_of(name: str, width: int | None, dataset: str) -> Size:
    """Count a network's multiply-accumulates and parameters on the meta device, where nothing is computed."""
    images = IMAGES[dataset]
    with torch.device("meta"):
        model = build(
            name, width=width, input_size=images.size, input_channels=images.channels, classes=images.classes
        ).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, images.channels, images.size, images.size))
    return Size(counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters()))


def images_of(config: Config) -> Images:
    """Return the images of the config's data set; one that is not in :data:`IMAGES` counts as CIFAR-10."""
    return IMAGES.get(config.data.name, IMAGES["cifar10"])


def passes(task: Task) -> float:
    """Count a task's passes of one image each, forward and backward, without those of its beginning."""
    images = images_of(task.config)
    counts: dict[Split, int] = {"train": images.train, "val": images.val, "test": images.test}
    total = sum(image_passes(task.config, counts, task.shared, task.until).values())
    if task.sharpness is not None:
        objective = task.config.objective
        ascents = len(task.sharpness.rho) * task.sharpness.restarts * task.sharpness.steps
        losses = passes_of_a_loss(objective) * (2 * PRODUCTS * 3 + ascents)
        total += min(task.sharpness.images, images.train) * (passes_of_a_step(objective) + losses)
    return total


def work(task: Task) -> float:
    """Count the multiply-accumulates of a task's passes, a backward pass counted as two forward ones."""
    name = task.config.data.name if task.config.data.name in IMAGES else "cifar10"
    network = task.config.network
    return 3 * size_of(network.name, network.width, name).macs * passes(task)


def disk(task: Task) -> int:
    """Count the bytes of the tensor files that a task leaves, besides those that its run has from its beginning."""
    images = images_of(task.config)
    files = files_of_run(task.config, images, until=task.until)
    if task.before is not None:
        minimizer = task.before.config.minimizer.name
        for file in files_taken_over(task.config, images, task.before.until, minimizer):
            del files[file]
    return sum(files.values())


def seconds_per_mac(benchmark: Path | None) -> Mapping[str, float]:
    """Read seconds per multiply-accumulate by network from Table 7, or from a benchmark's JSON file.

    ``python -m benchmarks --only table7 --json FILE`` writes the file. Networks that are missing in it count as the
    slowest one.

    Raises:
        InputError: if the file has no such rows.
    """
    rates = {}
    for name, (dataset, hours, count) in PAPER.items():
        macs = 3 * size_of(name, None, dataset).macs
        if benchmark is None:
            rates[name] = hours * 3600 / count / macs
        elif dataset == "cifar10":
            rates[name] = _benchmarked(benchmark, name) / (128 * 12) / macs
    return rates


def _benchmarked(file: Path, network: str) -> float:
    """Return the seconds of an iteration of Orig. at batch 128, ten steps."""
    check_input(file)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        names = (f"iteration, {network}, Orig., batch 128, {kind}" for kind in ("float32", "bfloat16"))
        chosen = {row["name"]: float(row["value"]) for row in rows}
        return next(chosen[name] for name in names if name in chosen)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(
            f"--benchmark {file}: no iteration of {network} in it; "
            "make it with `python -m benchmarks --only table7 --json FILE`"
        ) from error


def seconds(task: Task, rates: Mapping[str, float]) -> float:
    """Estimate the seconds of a task on one device that it has for itself."""
    return work(task) * rates.get(task.config.network.name, max(rates.values()))


def wall(tasks: Sequence[Task], cost: Mapping[str, float], devices: int) -> float:
    """Estimate the seconds until the last task ends when each device takes the next one whose beginning is done.

    Args:
        tasks: each behind the one that it waits for.
        cost: seconds of each, by name.
    """
    free = [0.0] * devices
    ended: dict[str, float] = {}
    followers: dict[str | None, list[Task]] = {}
    for task in tasks:
        followers.setdefault(task.after, []).append(task)
    ready = [(0.0, i, task) for i, task in enumerate(followers.get(None, []))]
    heapq.heapify(ready)
    number = len(ready)
    while ready:
        possible, _, task = heapq.heappop(ready)
        end = max(possible, heapq.heappop(free)) + cost[task.name]
        heapq.heappush(free, end)
        ended[task.name] = end
        for follower in followers.get(task.name, []):
            number += 1
            heapq.heappush(ready, (end, number, follower))
    return max(ended.values(), default=0.0)
