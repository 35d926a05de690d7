"""How much a sweep is to do, in multiply-accumulates, and what that is in hours and bytes.

The unit is a forward and a backward pass. Counts follow from the config; what a pass costs comes from the
benchmark's seconds per iteration on the machine in question, or from the paper's Table 7.
"""

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2ap_core.config import Config, StageSettings
from s2ap_core.errors import InputError
from s2ap_core.methods import build_method
from s2ap_core.models import build
from s2ap_core.stages import TRAINED_STAGES
from s2ap_diag.sweep.plan import Task

SIZES = {
    "digits": (1_197, 200, 400, 1, 8, 10),
    "cifar10": (49_000, 1_000, 10_000, 3, 32, 10),
    "svhn": (72_257, 1_000, 26_032, 3, 32, 10),
    "imagenet": (1_268_355, 12_812, 50_000, 3, 224, 1000),
}
"""Training, validation and test images, channels, size, classes."""

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

ROBUST = 0.5
"""Share of the test images that the later attacks of an evaluation still run on."""

EVALUATION = {
    "none": 1 / 3,
    "pgd-50": 51.0,
    # APGD-CE has 100 steps, targeted APGD 9 times 100 on what is left.
    "apgd": 100 + 900 * ROBUST,
    # FAB 9 times 100 with two passes in each, Square 5,000 forward passes.
    "autoattack": 100 + (900 + 1800 + 5000 / 3) * ROBUST,
}
"""Passes for each test image."""

PRODUCTS = 12
"""Hessian-vector products of one spectrum in ``sharpness``: Lanczos on digits takes ten, the error and the symmetry
defect two."""


@dataclass(frozen=True)
class Size:
    """Of a network on a data set: multiply-accumulates of a forward pass of an image, and parameters."""

    macs: float
    parameters: int


@cache
def size_of(name: str, width: int | None, dataset: str) -> Size:
    """Counted on the meta device, where nothing is computed."""
    *_, channels, size, classes = SIZES[dataset]
    with torch.device("meta"):
        model = build(name, width=width, input_size=size, input_channels=channels, classes=classes).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, channels, size, size))
    return Size(counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters()))


def passes(task: Task) -> float:
    """Passes of one image each, forward and backward, of a task from the beginning that it goes on from.

    Images of data sets that are not in :data:`SIZES` count as CIFAR-10's.
    """
    config, total = task.config, 0.0
    train, val, test, *_ = _sizes(config)
    ends = config.evaluation.stages or TRAINED_STAGES
    method = build_method(config.method)
    order = ("pretrain", "warmup", "prune", "end")
    begun = order.index(task.shared) if task.shared else -1
    until = order.index(task.until)
    step = _passes_of_a_step(config)
    if begun < 0 and method.pretrained and config.pretrain.checkpoint is None:
        total += _stage(config.pretrain, train, val, step, step)
    if until >= 1 and not set(ends) <= {"pretrain"}:
        warmup = min(config.minimizer.warmup, config.prune.epochs)
        plain = warmup if config.minimizer.name != "none" else config.prune.epochs
        first = 0 if begun < 1 else warmup
        last = {1: warmup}.get(until, config.prune.epochs)
        if begun < 2:
            before = max(0, min(plain, last) - first)
            after = last - first - before
            total += (before * step + after * (step + _perturbation(config))) * train
            total += (last - first) * val * step
            total += (last - first) * _tracked(config, train)
    if until == 3:
        if "finetune" in ends and method.finetuned:
            total += _stage(config.finetune, train, val, step + (_losses(config) if config.finetune.awp else 0), step)
        for stage in config.evaluation.stages:
            if stage != "finetune" or method.finetuned:
                total += EVALUATION[config.evaluation.attack] * min(config.evaluation.n or test, test)
        if task.sharpness is not None:
            # Each product over several batches makes its graph anew.
            spectra = 2 * PRODUCTS * 3 * _losses(config)
            steps = _passes_of_a_step(config) + spectra + len(task.sharpness.rho) * task.sharpness.steps
            total += min(task.sharpness.images, train) * steps
    return total


def work(task: Task) -> float:
    """Multiply-accumulates of a task: those of its passes, a backward pass counted as two forward ones."""
    name = task.config.data.name if task.config.data.name in SIZES else "cifar10"
    network = task.config.network
    return 3 * size_of(network.name, network.width, name).macs * passes(task)


def _sizes(config: Config) -> tuple[int, int, int, int, int, int]:
    return SIZES.get(config.data.name, SIZES["cifar10"])


def _stage(settings: StageSettings, train: int, val: int, step: float, validation: float) -> float:
    return settings.epochs * (train * step + val * validation)


def _passes_of_a_step(config: Config) -> float:
    steps = config.objective.steps
    return {"clean": 1.0, "fast-at": 2.0, "pgd-at": steps + 1.0}.get(config.objective.name, steps + 2.0)


def _perturbation(config: Config) -> float:
    """The extra loss for z."""
    minimizer = config.minimizer
    return 0.0 if minimizer.single_step else _losses(config) * minimizer.subset / minimizer.every


def _losses(config: Config) -> int:
    """Passes of one loss: of the clean and the adversarial images, or of one of them."""
    return 1 if config.objective.name in ("clean", "fast-at", "pgd-at") else 2


def _tracked(config: Config, train: int) -> float:
    tracking = config.tracking
    if not tracking.every:
        return 0.0
    batch = config.prune.batch_size
    readings = math.ceil(math.ceil(train / batch) / tracking.every)
    # At most: where no channel is dead, one reading serves both spectra. The last product is the quotient's; each is a
    # backward pass of a backward pass.
    products = len(tracking.batch_norm) * len(tracking.spectrum) * (tracking.hvps + 1)
    return readings * products * 2 * _losses(config) * min(tracking.images or batch, batch)


def disk(task: Task) -> float:
    """Bytes that a task leaves: a checkpoint and a mask for each epoch of the search, and the stages' states."""
    name = task.config.data.name if task.config.data.name in SIZES else "cifar10"
    size = size_of(task.config.network.name, task.config.network.width, name).parameters
    if task.until == "pretrain":
        return 3 * 4.0 * size
    epochs = task.config.minimizer.warmup if task.until == "warmup" else task.config.prune.epochs
    linked = task.config.minimizer.warmup if task.shared in ("warmup", "prune") else 0
    # Weights and scores of each epoch, the best and the state, which has momentum too.
    return 4.0 * size * (2 * (epochs + 1 - linked) + 2 + 3 + 3) + size / 8 * (epochs + 1)


def seconds_per_mac(benchmark: Path | None) -> Mapping[str, float]:
    """By network, from a JSON file of ``python -m benchmarks --only table7 --json FILE``, or from Table 7.

    Networks that are not in it take the slowest one's.

    Raises:
        InputError: if the file has no such rows.
    """
    found = {}
    for name, (dataset, hours, count) in PAPER.items():
        macs = 3 * size_of(name, None, dataset).macs
        if benchmark is None:
            found[name] = hours * 3600 / count / macs
        elif dataset == "cifar10":
            found[name] = _benchmarked(benchmark, name) / (128 * 12) / macs
    return found


def _benchmarked(file: Path, network: str) -> float:
    """Seconds of an iteration of Orig. at batch 128, ten steps."""
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
    """Of a task on one device that it has for itself."""
    return work(task) * rates.get(task.config.network.name, max(rates.values()))


def wall(tasks: Sequence[Task], cost: Mapping[str, float], devices: int) -> float:
    """Seconds until the last task ends when each device takes the next one whose beginning is done.

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
