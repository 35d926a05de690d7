"""What a user waits for before anything is computed, over what Python and numpy take to start."""

import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.command import python, s2ap_diag
from benchmarks.measure import Row, Setting, at_most, interleaved
from s2ap_core.files.tensors import save_masks
from s2ap_core.seeds import generator

MASKS = 21
"""Of each folder: before a search of 20 epochs and after each of them."""


def run(setting: Setting) -> list[Row]:
    rounds = 3 if setting.quick else 15
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_write(Path(folder) / name, name) for name in ("none", "s2ap"))
        calls = {
            "pass": partial(python, "-c", "pass"),
            "help": partial(s2ap_diag, "--help"),
            "numpy": partial(python, "-c", "import numpy"),
            "hamming": partial(s2ap_diag, "hamming", str(first), str(second)),
        }
        for call in calls.values():  # files into the page cache
            call()
        timed = interleaved(calls, rounds=rounds, device="cpu")
    goals = {
        ("help", "pass"): ("s2ap-diag --help, over python -c pass", 6.0),
        ("hamming", "numpy"): ("s2ap-diag hamming of two folders of masks, over python -c 'import numpy'", 4.0),
    }
    return [
        Row(name, timed.ratio(*pair), "x", at_most(bound), timed.compare(*pair))
        for pair, (name, bound) in goals.items()
    ]


def _write(folder: Path, minimizer: str) -> Path:
    """Write a narrow network's mask file for each epoch, as a run does; a few entries flip from one to the next."""
    rng = generator("cpu", 0, minimizer)
    masks = {f"layer{i}.weight": torch.rand(64, 64, generator=rng) < 0.1 for i in range(20)}
    for epoch in range(MASKS):
        save_masks(folder / f"epoch-{epoch:03d}.safetensors", masks, {"epoch": epoch, "minimizer": minimizer})
        masks = {name: mask ^ (torch.rand(mask.shape, generator=rng) < 0.005) for name, mask in masks.items()}
    return folder
