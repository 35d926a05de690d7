"""Seconds of a multiply-accumulate, by network, on a kind of device: from a table, from a benchmark, or timed here."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input
from s2ap_core.runs.checkpoints import build_network, describe_network
from s2ap_diag.execution.device import check_device
from s2ap_diag.sweep.estimate import images_of, macs_of_a_pass, size_of

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

H100 = {"resnet18": 0.060, "vgg16_bn": 0.042, "wrn_28_4": 0.102}
"""Seconds of an iteration of ours on an H100: batch 128 of CIFAR-10, ten steps, tf32; see docs/guide.md."""

TIMED = 1.0
"""Seconds that passes are repeated for where they are timed."""


TIMED_MACS = 2e10
"""Multiply-accumulates of a batch that is timed on a CPU."""


@dataclass(frozen=True)
class Rates:
    """Seconds of a multiply-accumulate by network; one that is not there counts as the slowest.

    Attributes:
        basis: where they come from, in words.
    """

    by_network: Mapping[str, float]
    basis: str

    def of(self, network: str) -> float:
        """Give the seconds of a multiply-accumulate of a network."""
        return self.by_network.get(network, max(self.by_network.values()))


def rates_of(device: str, benchmark: Path | None, configs: Iterable[Config]) -> Rates:
    """Find what a multiply-accumulate takes.

    Args:
        device: ``a6000``, ``h100``, or a device of this machine, on which a pass of each network is timed.
        benchmark: a file of ``python -m benchmarks --only table7 --json FILE``, in the place of ``device``.
        configs: whose networks are asked for.

    Raises:
        InputError: if the file has no such rows, or there is no such device.
    """
    if benchmark is not None:
        cifar = {name for name, (data, _, _) in PAPER.items() if data == "cifar10"}
        return Rates(_by_iteration({name: _benchmarked(benchmark, name) for name in cifar}), str(benchmark))
    if device == "a6000":
        by_network = {
            name: hours * 3600 / count / (3 * size_of(name, None, data).macs)
            for name, (data, hours, count) in PAPER.items()
        }
        return Rates(by_network, "the paper's Table 7 (A6000, published code)")
    if device == "h100":
        return Rates(_by_iteration(H100), "iterations on an H100 (this code, tf32; docs/guide.md)")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device {device}: give a6000, h100, or cpu, cuda or cuda:N of this machine")
    device = check_device(device)
    by_name = {config.network.name: config for config in configs}
    timed = {name: seconds_of_a_pass(config, device) / macs_of_a_pass(config) for name, config in by_name.items()}
    threads = f" with {torch.get_num_threads()} threads" if device == "cpu" else ""
    return Rates(timed, f"passes timed here on {device}{threads}")


def seconds_of_a_pass(config: Config, device: str) -> float:
    """Time an image's forward and backward pass: in batches of the search, on a CPU of about a second at most."""
    images, batch = images_of(config), config.prune.batch_size
    if device == "cpu":
        batch = max(1, min(batch, int(TIMED_MACS / macs_of_a_pass(config))))
    with torch.random.fork_rng([]):
        model = build_network(describe_network(config, images)).to(device)
    x = torch.zeros(batch, images.channels, images.size, images.size, device=device, requires_grad=True)
    passes, started = -1, 0.0  # the first one warms up
    while passes < 1 or time.monotonic() - started < TIMED:
        if passes == 0:
            started = time.monotonic()
        model(x).sum().backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        passes += 1
    return (time.monotonic() - started) / passes / batch


def _by_iteration(seconds: Mapping[str, float]) -> dict[str, float]:
    """Turn seconds of an iteration, batch 128 of CIFAR-10, ten steps and a loss, to those of a multiply-accumulate."""
    return {name: taken / (128 * 12) / (3 * size_of(name, None, "cifar10").macs) for name, taken in seconds.items()}


def _benchmarked(file: Path, network: str) -> float:
    """Return the seconds of an iteration of Orig. at batch 128, ten steps."""
    check_input(file)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        names = (f"iteration, {network}, Orig., batch 128, {kind}" for kind in ("tf32", "float32", "bfloat16"))
        chosen = {row["name"]: float(row["value"]) for row in rows}
        return next(chosen[name] for name in names if name in chosen)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(
            f"--benchmark {file}: no iteration of {network} in it; "
            "make it with `python -m benchmarks --only table7 --json FILE`"
        ) from error
