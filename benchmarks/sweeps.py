"""Runs per hour of a small gallery on this machine, and what several at once gain over one on all cores."""

import tempfile
from pathlib import Path

from benchmarks.command import overrides, s2ap_diag
from benchmarks.measure import Row, Setting, at_least

GRID = """
title = "the gallery's networks and arms, two folds, a third of its search"
scale = "digits"

[set]
"network.width" = 8
"prune.epochs" = 4
"minimizer.warmup" = 1
"data.options.fold" = 0
"tracking.every" = 10
"tracking.recipe" = "warm"
"tracking.images" = 64
"evaluation.attack" = "pgd-50"

[[group]]
presets = ["svhn-resnet18-hydra-orig-90", "svhn-resnet18-hydra-s2ap-90"]
zip = { seed = [0, 1], "data.options.fold" = [0, 1] }
sharpness = { images = 128, rho = [0.01] }
"""

QUICK = {
    "network.width": 2,
    **{f"{stage}.epochs": 1 for stage in ("pretrain", "prune", "finetune")},
    "minimizer.warmup": 0,
    "evaluation.n": 20,
}


def run(setting: Setting) -> list[Row]:
    runs, seconds = 2 if setting.quick else 4, {}
    for name, options in {"several": [], "one": ["--workers", "1"]}.items():
        with tempfile.TemporaryDirectory() as folder:
            grid = Path(folder) / "grid.toml"
            grid.write_text(GRID.replace("[0, 1]", "[0]") if setting.quick else GRID)
            short = overrides(QUICK) if setting.quick else []
            ended = s2ap_diag("sweep", str(grid), "--runs", f"{folder}/runs", "--quiet", *options, *short)
            seconds[name] = ended.seconds
    detail = f"{seconds['several']:.3g} s for {runs} runs and what they share, {seconds['one']:.3g} s one at a time"
    return [
        Row("runs of a small gallery per hour", 3600 * runs / seconds["several"], "", None, detail),
        Row("one run at a time over several at once", seconds["one"] / seconds["several"], "x", at_least(1.5), detail),
    ]
