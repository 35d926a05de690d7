"""Reading and comparing the masks of a search from disk, packed and as boolean tensors."""

import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Row, Setting, at_most, interleaved
from s2ap_core.files.tensors import save_masks
from s2ap_core.seeds import generator
from s2ap_diag.reading.read import read
from s2ap_diag.stability import trajectory

MASKS = 20


def run(setting: Setting) -> list[Row]:
    side = 100 if setting.quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        packed, plain = _write(Path(folder), side)
        return _measure(packed, plain, entries=25 * side**2)


def _write(folder: Path, side: int) -> tuple[list[Path], list[Path]]:
    """Make the masks of 25 layers of side x side after each epoch, in which a few entries flip."""
    rng = generator("cpu", 0, "masks")
    masks = {f"layer{i}.weight": torch.rand(side, side, generator=rng) < 0.1 for i in range(25)}
    packed, plain = [], []
    for epoch in range(MASKS):
        packed.append(folder / f"epoch-{epoch:03d}.safetensors")
        plain.append(folder / f"epoch-{epoch:03d}.pt")
        save_masks(packed[-1], masks, {"epoch": epoch})
        torch.save(masks, plain[-1])
        masks = {name: mask ^ (torch.rand(mask.shape, generator=rng) < 0.005) for name, mask in masks.items()}
    return packed, plain


def _measure(packed: list[Path], plain: list[Path], entries: int) -> list[Row]:
    flipped: dict[str, list[int]] = {}

    def ours() -> None:
        flipped["ours"] = [
            distance.flipped for distance in trajectory([read(path).as_masks().masks for path in packed])
        ]

    def boolean() -> None:
        masks = [torch.load(path) for path in plain]
        flipped["boolean"] = [sum(int((m[n] != masks[0][n]).sum()) for n in m) for m in masks[1:]]

    ours()
    boolean()
    rounds = interleaved({"ours": ours, "boolean": boolean}, rounds=5, device="cpu")
    agree = "the same" if flipped["ours"] == flipped["boolean"] else "OTHER"
    return [
        Row(
            f"Hamming, {MASKS} masks of {entries / 1e6:g} million entries read and compared",
            rounds.median("ours"),
            "s",
            at_most(1.0),
            "files in the page cache",
        ),
        Row(
            "Hamming, over boolean tensors",
            rounds.ratio("ours", "boolean"),
            "x",
            None,
            f"{rounds.compare('ours', 'boolean')}; {agree} counts",
        ),
    ]
