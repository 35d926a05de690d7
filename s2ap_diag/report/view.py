"""What is shown of one run."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from s2ap_core.config import Config
from s2ap_core.runs import course
from s2ap_core.runs.identity import flat
from s2ap_diag.comparison.cost import Cost
from s2ap_diag.reading.results import SHARPNESS, Run
from s2ap_diag.report.charts import Chart, chart
from s2ap_diag.report.groups import Mark
from s2ap_diag.report.maps import LayerMaps, read_maps
from s2ap_diag.report.measured import (
    ALL,
    EXPORT,
    LIVE,
    Curve,
    Curves,
    Evaluated,
    SharpnessRecord,
    read_latency,
    read_losses,
    read_results,
    read_sharpness,
    read_spectra,
)

LINKED = (
    "config.toml", "environment.json", "results.json", SHARPNESS, EXPORT, "metrics.csv", "timing.csv", "evals",
    "masks", "ckpt",
)  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in percent, its 95 % Wilson interval and, in words, what it was measured under."""

    percent: float
    interval: tuple[float, float]
    under: str


@dataclass(frozen=True)
class LambdaMax:
    """A reading of lambda_max.

    Attributes:
        value: over all scores, as the paper defines it; None where only the other was read.
        live: over the scores of channels that keep a weight; None where it was not read.
        mode: of BatchNorm, without which it means little.
    """

    value: float | None
    live: float | None
    mode: str


@dataclass(frozen=True)
class RunView:
    """What the report shows of one run; method, arm, h and the like are None where nothing was searched.

    Attributes:
        removed: fraction of the weights, or of the FLOPs, that pruning removes; ``reduction`` says it in words.
        gamma: radius of the perturbations that the arm makes, None if it makes none.
        fold: of the data, None where they have none.
        threat: attack, norm, eps and n of its evaluations, in words.
        settings: by dotted key, as text.
        accuracies: for each evaluated stage clean and robust accuracy, the latter None without an attack.
        cost: of the last network's mask, None where it was not counted.
        mark: of its arm, None where it is in no group.
        latency: milliseconds that the exported network takes for an image, None where it was not measured.
        h: of the last mask against the first (Eq. 13).
        rises: loss difference by rho.
        links: the run's files, name and percent-encoded address relative to the report.
    """

    name: str
    title: str
    data: str
    network: str
    method: str | None
    arm: str | None
    gamma: float | None
    removed: float | None
    reduction: str
    seed: int
    fold: int | None
    threat: Mapping[str, str]
    settings: Mapping[str, str]
    accuracies: Mapping[str, tuple[Accuracy, Accuracy | None]]
    measured: LambdaMax | None
    tracked: LambdaMax | None
    rises: Mapping[float, float]
    cost: Cost | None
    mark: Mark | None
    latency: float | None
    h: float | None
    seconds: float
    selected: int | None
    charts: list[Chart]
    maps: LayerMaps | None
    config: str
    environment: Mapping[str, Any]
    links: list[tuple[str, str]]

    @property
    def best(self) -> tuple[Accuracy, Accuracy | None] | None:
        """Clean and robust accuracy of what the run hands on in the end, of those networks that have a mask."""
        return self.accuracies.get("finetune") or self.accuracies.get("prune")


def view(run: Run, folder: Path, out: Path) -> RunView:
    """Collect what to show of one run.

    Args:
        folder: the run's name is relative to it.
        out: the report's file; links are relative to its folder.

    Raises:
        InputError: if a file of the run is missing, damaged, or not of the form that the run writes.
    """
    results, config = read_results(run), run.config
    searched = results.prune is not None
    maps, distances = read_maps(run) if searched else (None, [])
    losses = read_losses(run, results)
    spectra = {mode: read_spectra(run, mode) for mode in ("running", "batch", "none") if searched}
    h = {epoch: distance.h for epoch, distance in enumerate(distances, 1)}
    selected = results.prune.selected_epoch if results.prune else None
    sharpness = read_sharpness(run)
    removed, reduction = _removed(config) if searched else (None, "dense")
    return RunView(
        name=run.path.relative_to(folder).as_posix() if run.path != folder else run.path.resolve().name,
        title=config.title,
        data=config.data.name,
        network=course.network(config),
        method=config.method.name if searched else None,
        arm=course.arm(config) if searched else None,
        gamma=course.gamma(config) if searched else None,
        removed=removed,
        reduction=reduction,
        seed=config.seed,
        fold=fold if isinstance(fold := config.data.options.get("fold"), int) else None,
        threat=_threat(results.evaluated),
        settings=_settings(config),
        accuracies={stage: _accuracies(evaluated, config) for stage, evaluated in results.evaluated.items()},
        measured=_measured(sharpness) if sharpness else None,
        tracked=_last_tracked(spectra),
        rises={rho: rise.mean for rho, rise in sharpness.loss_difference.items()} if sharpness else {},
        cost=None,
        mark=None,
        latency=read_latency(run),
        h=distances[-1].h if distances else None,
        seconds=float(run.timing["seconds"].sum()),
        selected=selected,
        charts=_charts(losses, spectra, h, course.warmup(config) if searched else 0, selected),
        maps=maps if distances else None,
        config=config.to_toml(),
        environment=run.environment,
        links=list(_links(run.path, out)),
    )


def _charts(losses: Curves, spectra: Mapping[str, Curves], h: Curve, warmup: int, selected: int | None) -> list[Chart]:
    """Draw what there are readings of."""
    charts = [
        chart("Robust validation loss", losses, warmup=warmup, selected=selected),
        *(chart(f"λ_max, BatchNorm {mode}", curves, log=True, thin=ALL, warmup=warmup, selected=selected)
          for mode, curves in spectra.items()),
        chart("h to the first mask", {"h": h}, from_zero=True, warmup=warmup, selected=selected),
    ]  # fmt: skip
    return [drawn for drawn in charts if drawn is not None]


def _measured(sharpness: SharpnessRecord) -> LambdaMax:
    return LambdaMax(sharpness.lambda_max, sharpness.lambda_max_live, sharpness.batch_norm)


def _removed(config: Config) -> tuple[float, str]:
    """Compute the fraction of weights or FLOPs that goes, and say it as the field does."""
    reduction = course.flops_reduction(config)
    if reduction is not None:
        return 1 - 1 / reduction, f"{reduction:.4g}× FLOPs"
    return 1 - config.method.keep, f"{100 * (1 - config.method.keep):.4g} %"


def _settings(config: Config) -> dict[str, str]:
    """Say the settings; those of a perturbation that is not made say nothing."""
    void = "minimizer." if config.minimizer.name == "none" else ()
    settings = {key: str(value) for key, value in flat(config.model_dump(mode="json")).items() if value is not None}
    return {key: value for key, value in settings.items() if key == "minimizer.name" or not key.startswith(void)}


def _threat(evaluated: Mapping[str, Evaluated]) -> dict[str, str]:
    """Say what the evaluations were made under: one word each where they agree."""
    return {
        name: ", ".join(dict.fromkeys(str(getattr(one, name)) for one in evaluated.values())) or "–"
        for name in ("attack", "norm", "eps", "n")
    }


def _accuracies(evaluated: Evaluated, config: Config) -> tuple[Accuracy, Accuracy | None]:
    # Folds hold an image more or less, and are averaged over: their runs are of one rank.
    fold = config.evaluation.n is None and "fold" in config.data.options
    on = "a fold's test images" if fold else f"{evaluated.n} images"

    def accuracy(value: float, interval: tuple[float, float], under: str) -> Accuracy:
        return Accuracy(100 * value, (100 * interval[0], 100 * interval[1]), on + under)

    clean = accuracy(evaluated.clean_accuracy, evaluated.clean_interval, "")
    if evaluated.robust_accuracy is None or evaluated.robust_interval is None:
        return clean, None
    under = f", {evaluated.attack}, {evaluated.norm}, eps {evaluated.eps}"
    return clean, accuracy(evaluated.robust_accuracy, evaluated.robust_interval, under)


def _last_tracked(spectra: Mapping[str, Curves]) -> LambdaMax | None:
    """Read the mean over the last epoch's readings, preferably with running statistics, as ``sharpness`` measures."""
    for mode, curves in spectra.items():
        if any(curves.values()):
            last = max(epoch for values in curves.values() for epoch in values)
            return LambdaMax(curves[ALL].get(last), curves[LIVE].get(last), mode)
    return None


def _links(run: Path, out: Path) -> Iterator[tuple[str, str]]:
    base = os.path.relpath(run.resolve(), out.resolve().parent)
    for name in LINKED:
        if (run / name).exists():
            slash = "/" if (run / name).is_dir() else ""
            yield name + slash, quote(os.fsencode(os.path.join(base, name))) + slash
