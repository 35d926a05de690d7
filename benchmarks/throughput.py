"""``python -m benchmarks.throughput``: images per second against processes, measured here and by arithmetic."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from matplotlib.axes import Axes

from s2ap_diag.output import plots

FLOP_PER_IMAGE = 33 * 1.1e9
"""An S2AP iteration of ResNet-18 at 32x32: 21 forward passes for the attack, 6 for each pass with its gradient."""

FLOP_PER_SECOND = 30e12
"""Of one GPU on these convolutions, assumed."""

GRADIENT = 44.7e6
"""Bytes of 11.2 million float32, summed in each of S2AP's two passes."""

MESSAGES = 20 * 2 * 2
"""Of synced BatchNorm in a pass: layers, clean and adversarial, forward and backward."""

BATCH = 128
KINDS = ("sync", "local")
"""BatchNorm's statistics, as the benchmark names them."""


@dataclass(frozen=True)
class Link:
    """Bytes per second of the slowest link of a ring, and the seconds of a small message."""

    bandwidth: float
    latency: float


LINKS = {8: Link(200e9, 20e-6), 64: Link(40e9, 50e-6)}
"""By number of GPUs: NVLink within a node, 400 Gb/s between eight nodes."""


def computing(images: float) -> float:
    """Compute the seconds of an iteration's arithmetic for so many images on one GPU."""
    return images * FLOP_PER_IMAGE / FLOP_PER_SECOND


def communicating(gpus: int) -> float:
    """Compute the seconds of an iteration's messages: a ring sends 2 (N - 1) / N of the gradient over each link."""
    if gpus == 1:
        return 0.0
    link = LINKS[gpus]
    return 2 * (2 * (gpus - 1) / gpus * GRADIENT / link.bandwidth + MESSAGES * link.latency)


def throughput(gpus: int, images: float) -> float:
    """Compute the images per second of all GPUs together with ``images`` on each."""
    return gpus * images / (computing(images) + communicating(gpus))


def measured(rows: list[dict[str, object]]) -> dict[str, dict[int, float]]:
    """Read the images per second by statistics and number of processes, one thread each."""
    rates: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
    for row in rows:
        batch, case, *of = str(row["name"]).partition(", batch ")[2].split(", ")
        statistics = of[0].split()[0] if of else ""
        for kind in KINDS:
            if not of or statistics == kind:
                rates[kind][int(case.split()[0])] = int(batch) / float(str(row["value"]))
    return rates


def curve(axes: Axes, series: Mapping[str, Mapping[int, float]], xlabel: str) -> None:
    """Draw throughput over processes, with N times that of one as a thin line."""
    for i, (label, points) in enumerate(series.items()):
        axes.plot(list(points), list(points.values()), plots.LINES[i], marker=plots.MARKERS[i],
                  color=plots.COLORS[i], label=label)  # fmt: skip
    first = next(iter(series.values()))
    axes.plot(list(first), [n * first[1] for n in first], "-", lw=0.6, color="0.5", zorder=0, label="N times one")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(first), [str(n) for n in first])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel="images per second")
    axes.legend()


@click.command()
@click.argument("json_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(json_file: Path, out: Path) -> None:
    """Draw what `python -m benchmarks --only distributed --threads 1 --json JSON_FILE` found to OUT."""
    report = json.loads(json_file.read_text())
    device = "GPUs" if report["machine"]["device"] == "cuda" else "processes of one thread"
    growing = {n: throughput(n, BATCH) for n in (1, *LINKS)}
    fixed = {n: throughput(n, BATCH / n) for n in (1, *LINKS)}
    with plots.picture(out, 2 * plots.COLUMN, 2.4, 2) as (here, there):
        names = {"sync": "synced statistics", "local": "local statistics"}
        curve(here, {names[kind]: points for kind, points in measured(report["rows"]).items()}, f"{device} (measured)")
        here.set_ylim(bottom=0)
        curve(there, {f"{BATCH} images per GPU": growing, f"{BATCH} images in all": fixed}, "GPUs (arithmetic)")
        there.set_yscale("log")
    for n in LINKS:
        share = 100 * communicating(n) / (computing(BATCH) + communicating(n))
        click.echo(f"{n} GPUs: {1000 * communicating(n):.1f} ms of messages, {share:.1f} % with {BATCH} images each")


if __name__ == "__main__":
    main()
