"""Many runs, masks and rows: whole commands, Python's start included, as seconds and as memory."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import overrides, python, s2ap_diag
from benchmarks.measure import Row, Setting, at_most, timed
from s2ap_core.config import Config
from s2ap_core.files.tensors import save_masks
from s2ap_core.runs.directory import METRICS
from s2ap_core.seeds import generator
from s2ap_diag.reading.results import Run
from s2ap_diag.sweep.grid import expand, read_grid
from s2ap_diag.sweep.plan import plan
from s2ap_diag.sweep.schedule import Schedule
from s2ap_diag.sweep.tasks import Workplace

PRESETS = ("svhn-resnet18-hydra-orig-90", "svhn-resnet18-hydra-s2ap-90")

SHORT = {
    "network.width": 4,
    **{f"{stage}.epochs": 1 for stage in ("pretrain", "prune", "finetune")},
    "minimizer.warmup": 0,
    "tracking.every": 10,
    "tracking.images": 16,
    "evaluation.attack": '"pgd-50"',
    "evaluation.n": 20,
}


def run(setting: Setting) -> list[Row]:
    few = 100 if setting.quick else 1  # how many times fewer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [
            *_sweep(folder, 10_000 // few),
            *_reports(folder, 1_000 // few),
            *_masks(folder, 500 // few, side=100 if setting.quick else 1_000),
            *_metrics(folder / "run", 1_000_000 // few),
        ]


def _sweep(folder: Path, runs: int) -> Iterator[Row]:
    grid, root = folder / "grid.toml", folder / "sweep"
    seeds = ", ".join(map(str, range(runs // 2)))
    grid.write_text(f'scale = "digits"\n[[group]]\npresets = {list(PRESETS)}\nvalues = {{ seed = [{seeds}] }}\n')
    planned = s2ap_diag("sweep", str(grid), "--runs", str(root), "--dry-run")
    yield Row(f"a sweep of {runs:,} runs planned", planned.seconds, "s", at_most(5), f"{planned.memory:.0f} MB")
    Schedule(plan(expand(read_grid(str(grid)))), Workplace(str(root)), 1).save()
    status = s2ap_diag("sweep", "--runs", str(root), "--status")
    yield Row(f"--status of {runs:,} runs", status.seconds, "s", at_most(5), f"{status.memory:.0f} MB")


def _reports(folder: Path, runs: int) -> Iterator[Row]:
    templates = []
    for preset in PRESETS:
        templates.append(folder / preset)
        s2ap_diag("run", preset, "--scale", "digits", *overrides(SHORT), "--quiet", "--out", str(templates[-1]))
    many, report = folder / "runs", folder / "report.html"
    for seed in range(runs // len(templates)):
        for template in templates:
            _again(template, many / f"{template.name}-{seed:04d}", seed)
    written = s2ap_diag("report", str(many), "--out", str(report))
    size = f"{written.memory:.0f} MB of memory, a page of {report.stat().st_size / 1e6:.1f} MB"
    yield Row(f"a report of {runs:,} runs", written.seconds, "s", at_most(30), size)
    drawn = python("-m", "figures", "--runs", str(many), "--out", str(folder / "figures"), "--free")
    yield Row(f"figures of {runs:,} runs", drawn.seconds, "s", at_most(30), f"{drawn.memory:.0f} MB of memory")
    most = max(written.memory, drawn.memory)
    yield Row(f"most memory of both, {runs:,} runs", most, "MB", at_most(1_000), "")


def _again(template: Path, run: Path, seed: int) -> None:
    """Make the same run under another seed, by links to its files."""
    for file in template.rglob("*"):
        if file.is_file():
            linked = run / file.relative_to(template)
            linked.parent.mkdir(parents=True, exist_ok=True)
            if file.name == "config.toml":
                linked.write_text(file.read_text().replace("seed = 0", f"seed = {seed}", 1))
            else:
                os.link(file, linked)


def _masks(folder: Path, count: int, side: int) -> Iterator[Row]:
    """Eleven layers of side x side, so many masks of them, each of which differs from the last in a few entries."""
    rng, masks, entries = generator("cpu", 0, "masks"), folder / "masks", 11 * side**2
    masks.mkdir()
    layers = {f"layer{i}.weight": torch.rand(side, side, generator=rng) < 0.1 for i in range(11)}
    flips = torch.rand(side, side, generator=rng) < 0.005
    for epoch in range(count):
        layers = {name: bits ^ flips.roll(epoch, 0) for name, bits in layers.items()}
        save_masks(masks / f"epoch-{epoch:03d}.safetensors", layers, {"epoch": epoch})
    read = timed(lambda: [file.read_bytes() for file in masks.iterdir()], "cpu")
    compared = s2ap_diag("hamming", str(masks))
    held = sum(file.stat().st_size for file in masks.iterdir()) / 1e6
    detail = (
        f"{held:.0f} MB, which take {read:.2g} s to read alone from the page cache; {compared.memory:.0f} MB of memory"
    )
    yield Row(f"hamming of {count} masks of {entries / 1e6:g} million entries", compared.seconds, "s", None, detail)


def _metrics(run: Path, rows: int) -> Iterator[Row]:
    """Values of fifty metrics, at every iteration."""
    run.mkdir()
    epochs = np.arange(rows) // 5_000 + 1
    columns = [["prune"] * rows, epochs, np.arange(rows) % 100, [f"metric{i % 50}" for i in range(rows)], np.ones(rows)]
    lines = map(",".join, zip(*(map(str, column) for column in columns), strict=True))
    (run / "metrics.csv").write_text("\n".join([",".join(METRICS), *lines]) + "\n")

    def read() -> None:
        one = Run(run, Config(), {}, {})
        for metric in range(50):
            one.tracked(f"metric{metric}")

    yield Row(f"a metrics.csv of {rows:,} rows read", timed(read, "cpu"), "s", at_most(2), "and 50 metrics looked up")
