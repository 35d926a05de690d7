"""``s2ap-diag export``: a channel-pruned network as a smaller dense one, or any result for a benchmark."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.data import Dataset
from s2ap_core.errors import InputError
from s2ap_core.export import check_suffix, exported_flops, image_shape, kept_channels, save_exported, shrink
from s2ap_core.files.atomic import write_file
from s2ap_core.foreign import apb
from s2ap_core.masks.masking import bake
from s2ap_core.runs.checkpoints import Checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.evaluation import load_evaluation
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.progress import counting
from s2ap_diag.output.destinations import Output, check_destinations
from s2ap_diag.output.tables import Table, make_table
from s2ap_diag.reading.source import Source

TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the largest logit where that exceeds 1."""


def run_command(
    run: Path,
    out: Path,
    benchmark: str | None,
    n: int,
    rounds: int,
    source: Source,
    output: Output,
    device: str,
) -> None:
    """Write the smaller network, or the benchmark's, once its outputs are those of the masked one."""
    check_device(device)
    if benchmark is not None:
        export_for_apb(result_of(run), out, n, source, output)
        return
    check_suffix(out)
    path = result_of(run)
    checkpoint = source.open(path, device)
    try:
        images = image_shape(checkpoint.header["network"])
        kept = kept_channels(checkpoint.model)
        smaller = shrink(checkpoint.model, images, kept)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    masked = bake(checkpoint.model)
    x = next(source.data(checkpoint).to(device).batches("test", n)).x
    difference = largest_difference(masked, smaller, x)
    save_exported(out, smaller, checkpoint, kept)
    with counting("timing", rounds, output.quiet) as advance:
        seconds = forward_seconds((masked, smaller), x, rounds, advance)
    dense_flops, flops = exported_flops(masked, images, kept)
    record: dict[str, Any] = {
        "checkpoint": str(path),
        "file": str(out),
        "max_difference": difference,
        "images": len(x),
        "flops": {"dense": dense_flops, "exported": flops},
        "parameters": {"dense": parameters(masked), "exported": parameters(smaller)},
        "seconds": {"masked": seconds[0], "exported": seconds[1]},
        "speedup": seconds[0] / seconds[1],
        "kept_channels": {name: int(bits.sum()) for name, bits in kept.items()},
    }
    output.emit([record], table_of(record))
    if output.plot is not None:
        from s2ap_diag.output import plots  # matplotlib takes as long as the rest

        with plots.picture(output.plot, plots.COLUMN, max(2.4, 0.13 * len(kept) + 0.8)) as axes:
            shares = {name: float(bits.float().mean()) for name, bits in kept.items()}
            plots.layer_bars(axes, shares, xlabel="fraction of input channels kept")


def export_for_apb(path: Path, out: Path, n: int, source: Source, output: Output) -> None:
    """Write what AdversarialPruningBenchmark loads, and beside it the entry of its leaderboard."""
    apb.check_suffix(out)
    note = out.with_name(f"{out.name}.entry.md")
    check_destinations({"--out": note}, [path])
    checkpoint = source.open(path)
    try:
        base = apb.base_network(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    data = source.data(checkpoint)
    x = next(data.batches("test", n)).x
    difference = largest_difference(bake(checkpoint.model), base, x)
    evaluation = evaluation_of(checkpoint, data, source.dataset)
    apb.save_for_apb(out, base)
    key = apb.model_key(checkpoint)
    write_file(note, apb.entry(key, out.suffix, evaluation))
    record = {"checkpoint": str(path), "file": str(out), "entry": str(note), "key": key, "max_difference": difference}
    title = f"{out}: max |difference| {difference:.1e} on {len(x)} test images"
    output.emit([record], make_table(title, ["key", "entry of the leaderboard"], [[key, str(note)]]))


def evaluation_of(checkpoint: Checkpoint, data: Dataset, dataset: str | None) -> dict[str, Any]:
    """Read the summary of its run's evaluation of this very checkpoint on the whole test split; empty where none is.

    Args:
        data: the images.
        dataset: what the user called them, None where the checkpoint does.

    Raises:
        InputError: if the file is damaged.
    """
    file = checkpoint.path.parent.parent / "evals" / f"{checkpoint.header.get('stage')}.npz"
    if not file.is_file():
        return {}
    evaluation = load_evaluation(file)
    about = evaluation.about
    same = about.get("sha256") is not None and about["sha256"] == checkpoint.header.get("sha256")
    whole = len(evaluation.index) == data.count("test")
    of_these = dataset in (None, about.get("dataset"))
    return evaluation.summary() if same and whole and of_these else {}


def result_of(run: Path) -> Path:
    """Choose the checkpoint to export: a run's finetuned network, else its raw mask; a file stands for itself.

    Raises:
        InputError: if the run has neither yet, or there is no such run or file.
    """
    if os.path.isfile(run):
        return run
    if not os.path.isdir(run):
        raise InputError(f"{run}: no such file or folder; give a run or one of its checkpoints")
    results = [RunDirectory.open(run).checkpoint(f"{stage}-best") for stage in ("finetune", "prune")]
    for path in results:
        if path.exists():
            return path
    raise InputError(f"{run}: has no pruned network yet; finish it with s2ap-diag run --resume --out {run}")


@torch.no_grad()
def largest_difference(masked: nn.Module, smaller: nn.Module, x: Tensor) -> float:
    """Compute the largest difference of a logit on images [B, C, H, W].

    Raises:
        InputError: if it is more than rounding.
    """
    expected = masked(x)
    difference = float((smaller(x) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):  # also for NaN
        raise InputError(f"the smaller network's logits differ by {difference:.2g}: check the checkpoint with verify")
    return difference


@torch.no_grad()
def forward_seconds(models: tuple[nn.Module, ...], x: Tensor, rounds: int, advance: Callable[[], None]) -> list[float]:
    """Time each model's forward pass on ``x``: median seconds; the models take turns, after one round untimed."""
    seconds: list[list[float]] = [[] for _ in models]
    for timed in range(rounds + 1):
        for model, of_model in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if timed:
                of_model.append(time.perf_counter() - started)
        if timed:
            advance()
    return [median(of_model) for of_model in seconds]


def parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(p.numel() for p in model.parameters())


def table_of(record: dict[str, Any]) -> Table:
    """Set the masked network beside the exported one."""
    flops, sizes, seconds = record["flops"], record["parameters"], record["seconds"]
    title = f"{record['file']}: max |difference| {record['max_difference']:.1e} on {record['images']} test images"
    rows = [
        ["FLOPs (multiply-accumulates)", flops["dense"], flops["exported"], flops["dense"] / flops["exported"]],
        ["parameters", sizes["dense"], sizes["exported"], sizes["dense"] / sizes["exported"]],
        ["ms per batch", 1e3 * seconds["masked"], 1e3 * seconds["exported"], record["speedup"]],
    ]
    return make_table(title, ["", "masked", "exported", "times fewer"], rows)
