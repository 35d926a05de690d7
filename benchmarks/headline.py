"""The commands that a reader types first, as seconds until they end: measured whole, Python's start included."""

import tempfile
from pathlib import Path
from statistics import median

from benchmarks.command import overrides, s2ap_diag
from benchmarks.measure import Row, Setting, at_most

PRESET = "svhn-resnet18-hydra-s2ap-plain-90"
"""On digits at width 8: the network of the demo."""


def run(setting: Setting) -> list[Row]:
    epochs = 1 if setting.quick else 20  # 22 checkpoints: before the search, after each epoch, the best
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "run"
        short = {
            "network.width": 8,
            "prune.epochs": epochs,
            "evaluation.stages": '["prune"]',
            **({"pretrain.epochs": 1} if setting.quick else {}),
            "minimizer.warmup": 0,
            "finetune.epochs": 1,
            "tracking.every": 0,
        }
        attack = ["--set", "evaluation.attack=none", "--quiet"]
        s2ap_diag("run", PRESET, "--scale", "digits", *overrides(short), *attack, "--out", str(made))
        checkpoints, masks = made / "ckpt", str(made / "masks")
        few = ("--images", "32") if setting.quick else ()
        seconds = {
            name: [s2ap_diag(*call, "--quiet").seconds for _ in range(rounds)]
            for name, (call, rounds) in {
                "one": (("sharpness", str(checkpoints / "prune-best.safetensors"), *few), 1 if setting.quick else 2),
                "folder": (("sharpness", str(checkpoints), *few), 1),
                "hamming": (("hamming", masks, masks), 1 if setting.quick else 5),
            }.items()
        }
    return [
        Row("sharpness of one checkpoint, ResNet-18 of width 8", median(seconds["one"]), "s", at_most(12)),
        Row(f"sharpness of a run's {epochs + 2} checkpoints", median(seconds["folder"]), "s", at_most(180)),
        Row("hamming of two folders of masks", median(seconds["hamming"]), "s", at_most(1.5)),
    ]
