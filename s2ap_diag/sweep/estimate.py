"""The work of runs in multiply-accumulates, and what it takes in hours and bytes.

The unit is a forward and a backward pass. Counts follow from the config, and are the network's own; what one costs on a
kind of device is said by :mod:`s2ap_diag.sweep.rates`.
"""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.config import Config, NetworkSettings
from s2ap_core.data import Split
from s2ap_core.runs.checkpoints import build_network, describe_network
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

PRODUCTS = 12
"""Hessian-vector products of one spectrum in ``sharpness``: Lanczos on digits takes ten, the error and the symmetry
defect two."""


@dataclass(frozen=True)
class Size:
    """The size of a network on a data set: parameters, and multiply-accumulates of an image's forward pass."""

    macs: float
    parameters: int


def size_of(name: str, width: int | None, dataset: str) -> Size:
    """Count a network's multiply-accumulates and parameters on a data set of :data:`IMAGES`."""
    return _size(Config(network=NetworkSettings(name=name, width=width)), IMAGES[dataset])


def _size(config: Config, images: Images) -> Size:
    return _counted(json.dumps(describe_network(config, images)))


@cache
def _counted(described: str) -> Size:
    """Count on the meta device, where nothing is computed."""
    network = json.loads(described)
    with torch.device("meta"):
        model = build_network(network).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, network["input_channels"], network["input_size"], network["input_size"]))
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
    """Count the multiply-accumulates of a task's passes."""
    return macs_of_a_pass(task.config) * passes(task)


def works(tasks: Sequence[Task]) -> list[float]:
    """Compute the :func:`work` of each task, once for those whose configs share their parts and differ in seed."""
    known: dict[tuple[Any, ...], float] = {}
    found = []
    for task in tasks:
        parts = tuple(id(part) for name, part in task.config if name not in ("title", "seed"))
        alike = (parts, id(task.sharpness), task.shared, task.until)
        if alike not in known:
            known[alike] = work(task)
        found.append(known[alike])
    return found


def macs_of_a_pass(config: Config) -> float:
    """Count the multiply-accumulates of an image's forward and backward pass; the latter counts as two forward ones."""
    return 3 * _size(config, images_of(config)).macs


def stages(config: Config) -> dict[str, float]:
    """Count the passes of a run by stage, an evaluation's as ``evaluate-STAGE``."""
    images = images_of(config)
    return image_passes(config, {"train": images.train, "val": images.val, "test": images.test})


def disk(task: Task) -> int:
    """Count the bytes of the tensor files that a task leaves, besides those that its run has from its beginning."""
    images = images_of(task.config)
    files = files_of_run(task.config, images, until=task.until)
    if task.before is not None:
        minimizer = task.before.config.minimizer.name
        for file in files_taken_over(task.config, images, task.before.until, minimizer):
            del files[file]
    return sum(files.values())


def seconds(task: Task, per_mac: float) -> float:
    """Estimate the seconds of a task on one device that it has for itself, from those of a multiply-accumulate."""
    return work(task) * per_mac


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
