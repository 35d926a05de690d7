"""What S2AP costs on top of the search that it wraps (Table 7)."""

from collections.abc import Callable

from benchmarks.measure import Row, Setting, at_most, interleaved
from benchmarks.worlds import images, network, search
from s2ap_core.sharpness import Perturbation, score_layers


def run(setting: Setting) -> list[Row]:
    x, y = images(setting.batch(64), setting)
    ours = search(network("resnet18", setting), x)
    perturbation = Perturbation(ours.model, score_layers(ours.model), gamma=0.001)
    functions: dict[str, Callable[[], object]] = {
        "orig": lambda: ours.iterate(x, y),
        "s2ap": lambda: ours.iterate(x, y, perturbation),
    }
    for function in functions.values():
        function()
    rounds = interleaved(functions, rounds=5, device=setting.device)
    ratio, where = rounds.ratio("s2ap", "orig"), f"resnet18, batch {len(x)}"
    return [
        Row(f"S2AP over Orig., {where}", ratio, "x", at_most(1.30), rounds.compare("s2ap", "orig")),
        Row("overhead, (S2AP - Orig.) / Orig.", 100 * (ratio - 1), "%", None, "Table 7: 21.1 % (CIFAR-10)"),
        Row(
            "overhead, (S2AP - Orig.) / S2AP",
            100 * (1 - 1 / ratio),
            "%",
            None,
            "Table 7 as printed: 17.42 % (CIFAR-10)",
        ),
    ]
