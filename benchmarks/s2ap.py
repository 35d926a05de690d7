"""What S2AP costs on top of the search that it wraps (Table 7), and what its cheaper variants cost."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from benchmarks.measure import Row, Setting, at_most, interleaved
from benchmarks.worlds import images, network, search
from s2ap_core.training.ball import Flips, Radius, Relative, score_layers
from s2ap_core.training.perturbation import Perturbation

SERVES = 4
"""Iterations that one z serves in the variant ``every``."""

VARIANTS: dict[str, dict[str, Any]] = {
    "s2ap": {},
    "last": {"source": "last"},
    "attack": {"source": "attack"},
    "momentum": {"source": "momentum"},
    "flips": {"radius": Flips(0.01)},
    "subset": {"subset": 0.25},
    "kept": {"every": 10**9},  # the iterations between two passes of ``every``
}


def run(setting: Setting) -> list[Row]:
    x, y = images(setting.batch(64, cpu=32), setting)
    ours = search(network("resnet18", setting), x)
    functions: dict[str, Callable[[], object]] = {"orig": lambda: ours.iterate(x, y)}
    for name, options in deepcopy(VARIANTS).items():
        radius: Radius = options.pop("radius", Relative(0.001))
        perturbation = Perturbation(ours.model, score_layers(ours.model), radius=radius, **options)
        functions[name] = partial(ours.iterate, x, y, perturbation)
    for function in functions.values():
        function()
    rounds = interleaved(functions, rounds=3, device=setting.device)
    ratio = {name: rounds.ratio(name, "orig") for name in VARIANTS}
    where = f"resnet18, batch {len(x)}"
    every = (ratio["s2ap"] + (SERVES - 1) * ratio["kept"]) / SERVES
    return [
        Row(f"S2AP over Orig., {where}", ratio["s2ap"], "x", at_most(1.30), rounds.compare("s2ap", "orig")),
        Row("overhead, (S2AP - Orig.) / Orig.", 100 * (ratio["s2ap"] - 1), "%", None, "Table 7: 21.1 % (CIFAR-10)"),
        Row(
            "overhead, (S2AP - Orig.) / S2AP",
            100 * (1 - 1 / ratio["s2ap"]),
            "%",
            None,
            "Table 7 as printed: 17.42 % (CIFAR-10)",
        ),
        Row(
            "S2AP along the last gradient (source = last) over Orig.",
            ratio["last"],
            "x",
            at_most(1.03),
            rounds.compare("last", "orig"),
        ),
        *(
            Row(f"S2AP, source = {name}, over Orig.", ratio[name], "x", at_most(goal), rounds.compare(name, "orig"))
            for name, goal in (("attack", 1.04), ("momentum", 1.01))
        ),
        Row(
            "S2AP, gamma = flips, over gamma as a number",
            rounds.ratio("flips", "s2ap"),
            "x",
            at_most(1.03),
            rounds.compare("flips", "s2ap"),
        ),
        Row(
            "S2AP by a quarter of the batch (subset) over Orig.",
            ratio["subset"],
            "x",
            at_most(1.10),
            rounds.compare("subset", "orig"),
        ),
        Row(
            f"S2AP whose z serves {SERVES} iterations (every) over Orig.",
            every,
            "x",
            None,
            f"one iteration with the pass, {SERVES - 1} without: {rounds.compare('kept', 'orig')}",
        ),
    ]
