"""Seconds per iteration and hours per search for the CIFAR-10 rows of Table 7, on synthetic images."""

import time
from collections.abc import Callable

import torch

from benchmarks.measure import Row, Setting, interleaved
from benchmarks.worlds import images, network, search
from s2ap_core.modes import gpu_arithmetic
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.perturbation import Perturbation
from s2ap_diag.sweep.estimate import size_of

# Hours in the paper, on one A6000: Orig. and S2AP.
NETWORKS = {"resnet18": (3.27, 3.96), "vgg16_bn": (1.41, 1.73), "wrn_28_4": (6.12, 6.97)}
ITERATIONS = 20 * 391  # epochs of 50,000 images in batches of 128
STEPS = 10
# Forward passes of an image, a backward one counted as two, or as one where no weight has a gradient (the attack).
PASSES = {"Orig.": 1 + 2 * STEPS + 2 * 3, "S2AP": 1 + 2 * STEPS + 4 * 3}


def run(setting: Setting) -> list[Row]:
    precisions = ("float32",) if setting.device == "cpu" else ("float32", "tf32", "bfloat16")
    peaks = {precision: matrix_peak(setting.device, precision) for precision in precisions}
    return [
        row
        for name, hours in NETWORKS.items()
        for precision in precisions
        for row in _network(setting, name, hours, precision, peaks[precision])
    ]


def _network(setting: Setting, name: str, paper: tuple[float, float], precision: str, peak: float) -> list[Row]:
    x, y = images(setting.batch(128), setting)
    ours = search(network(name, setting), x, precision=precision)
    perturbation = Perturbation(ours.model, score_layers(ours.model), radius=Relative(0.001))
    functions: dict[str, Callable[[], object]] = {
        "Orig.": lambda: ours.iterate(x, y),
        "S2AP": lambda: ours.iterate(x, y, perturbation),
    }
    for function in functions.values():
        function()
    rounds = interleaved(functions, rounds=2 if setting.device == "cpu" else 20, device=setting.device)
    rows = []
    macs = size_of(name, setting.width, "cifar10").macs
    for arm, hours in zip(functions, paper, strict=True):
        seconds = rounds.median(arm)
        share = 2 * macs * PASSES[arm] * len(x) / seconds / peak
        detail = (
            f"20 epochs: {seconds * ITERATIONS / 3600:.3g} h; Table 7: {hours} h on an A6000; "
            f"{share:.0%} of the matrix peak, {peak / 1e12:.3g} TFLOP/s"
        )
        rows.append(Row(f"iteration, {name}, {arm}, batch {len(x)}, {precision}", seconds, "s", None, detail))
    return rows


def matrix_peak(device: str, precision: str) -> float:
    """Measure the floating-point operations per second of a large matrix product, the best of ten."""
    n = 1024 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    best = float("inf")
    with gpu_arithmetic(tf32=precision == "tf32"):
        for _ in range(10):
            _wait(device)
            started = time.perf_counter()
            a @ a
            _wait(device)
            best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
