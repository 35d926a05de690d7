"""Images per second of ImageNet's loader, by the number of worker processes."""

import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Row, Setting, at_most, interleaved
from s2ap_core.data import Dataset, load

CLASSES, BATCH = 4, 16


def run(setting: Setting) -> list[Row]:
    count = 128 if setting.quick else 256
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), count)
        return [*_by_workers(Path(folder), setting), _half(Path(folder))]


def _write(folder: Path, count: int) -> None:
    """Write photographs of real size and detail: ImageNet's mean is 500 x 375 pixels and 110 kB."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count + CLASSES), ("val", CLASSES)):  # one of each class is held out
        for i in range(images):
            coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
            grain = rng.integers(-12, 13, smooth.shape, dtype=np.int16)
            file = folder / split / f"n{i % CLASSES:08d}" / f"{i}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)


def _read(data: Dataset, **options: object) -> int:
    """Read the images of an epoch of training, augmented."""
    return sum(len(batch.y) for batch in data.batches("train", BATCH, shuffle=1, augment=True, **options))  # type: ignore[arg-type]


def _by_workers(folder: Path, setting: Setting) -> list[Row]:
    cores = os.cpu_count() or 1
    workers = sorted({0, 1, 2, cores})
    data = {str(n): load("imagenet", folder, workers=n) for n in workers}
    images = _read(data["0"])
    rounds = interleaved(
        {name: lambda ours=ours: _read(ours) for name, ours in data.items()},  # type: ignore[misc]
        rounds=1 if setting.quick else 3,
        device="cpu",
    )
    return [
        Row(
            f"loader, {images} JPEGs of 500x375 to 224x224, {name} workers",
            images / rounds.median(name),
            "images/s",
            None,
            f"{images / rounds.median(name) / max(1, min(int(name), cores)):.3g} per core in use, start included",
        )
        for name in data
    ]


def _half(folder: Path) -> Row:
    """Decode, as one of two processes, its own images alone."""
    data = load("imagenet", folder, workers=0)
    rounds = interleaved(
        {
            "half": lambda: _read(data, part=lambda batches: [positions[::2] for positions in batches]),
            "whole": lambda: _read(data),
        },
        rounds=3,
        device="cpu",
    )
    ratio, detail = rounds.ratio("half", "whole"), rounds.compare("half", "whole")
    return Row("loader, one of two processes over all of the images", ratio, "x", at_most(0.6), detail)
