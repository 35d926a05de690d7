"""Seconds per iteration and hours per search for the CIFAR-10 rows of Table 7, on synthetic images."""

from collections.abc import Callable

from benchmarks.measure import Row, Setting, interleaved
from benchmarks.worlds import images, network, search
from s2ap_core.sharpness import Perturbation, score_layers

# Hours in the paper, on one A6000: Orig. and S2AP.
NETWORKS = {"resnet18": (3.27, 3.96), "vgg16_bn": (1.41, 1.73), "wrn_28_4": (6.12, 6.97)}
ITERATIONS = 20 * 391  # epochs of 50,000 images in batches of 128


def run(setting: Setting) -> list[Row]:
    return [row for name, hours in NETWORKS.items() for row in _network(setting, name, hours)]


def _network(setting: Setting, name: str, paper: tuple[float, float]) -> list[Row]:
    x, y = images(setting.batch(128), setting)
    ours = search(network(name, setting), x)
    perturbation = Perturbation(ours.model, score_layers(ours.model), gamma=0.001)
    functions: dict[str, Callable[[], object]] = {
        "Orig.": lambda: ours.iterate(x, y),
        "S2AP": lambda: ours.iterate(x, y, perturbation),
    }
    for function in functions.values():
        function()
    rounds = interleaved(functions, rounds=2 if setting.device == "cpu" else 20, device=setting.device)
    rows = []
    for arm, hours in zip(functions, paper, strict=True):
        seconds = rounds.median(arm)
        detail = f"20 epochs: {seconds * ITERATIONS / 3600:.3g} h; Table 7: {hours} h on an A6000"
        rows.append(Row(f"iteration, {name}, {arm}, batch {len(x)}, float32", seconds, "s", None, detail))
    return rows
