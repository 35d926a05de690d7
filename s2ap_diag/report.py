"""Finished runs as one HTML file that needs no network: a sortable table, and a folded section for each run.

Whatever a user may have chosen (paths, titles, settings, layer names) reaches the page through Jinja's
autoescape as text, and links only as percent-encoded relative paths. A Content-Security-Policy lets the browser
run and fetch nothing but the page's own script, style and ``data:`` images.
"""

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.runs import RunDirectory, write_file
from s2ap_diag.collect import SHARPNESS, Run, Skipped, collect
from s2ap_diag.sources import open_packed_masks
from s2ap_diag.stability import Hamming, hamming

COLOUR_MAP = "cividis"
"""Its lightness rises evenly, so that it reads in grey; as in the other pictures of layers."""

LINKED = (
    "config.toml", "environment.json", "results.json", SHARPNESS, "metrics.csv", "timing.csv", "evals", "masks", "ckpt",
)  # fmt: skip

STAGES = {"pretrain": "dense", "prune": "raw mask", "finetune": "finetuned"}
"""The stages that are evaluated, and what each of them hands on."""

LIVE, ALL = "live channels", "all scores"
"""The spectra that lambda_max is read of, in words."""

LABEL_LENGTH = 20
"""Characters of a layer's name that there is room for beside the heat map."""


class _Evaluated(BaseModel):
    n: int
    attack: str
    norm: str
    eps: str
    clean_accuracy: float
    clean_interval: tuple[float, float]
    robust_accuracy: float | None = None
    robust_interval: tuple[float, float] | None = None


class _Searched(BaseModel):
    selected_epoch: int | None = None


class _Results(BaseModel):
    prune: _Searched | None = None
    finetune: dict[str, Any] | None = None
    evaluated: Annotated[dict[str, _Evaluated], Field(default_factory=dict)]


class _Rise(BaseModel):
    mean: float


class _Sharpness(BaseModel):
    lambda_max: float
    lambda_max_live: float | None = None
    batch_norm: str
    loss_difference: dict[float, _Rise] = {}


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in percent and, in words, its 95 % Wilson interval and what it was measured under."""

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
class Tick:
    """A tick: where it stands along its axis in the picture's units, and what is written at it."""

    at: float
    text: str


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        points: of an SVG polyline.
        epochs, values: what the points stand for, as JSON lists.
        label: the curve in words.
        thin: whether it stands beside the one that counts.
    """

    name: str
    points: str
    epochs: str
    values: str
    label: str
    thin: bool


@dataclass(frozen=True)
class Chart:
    """Curves over epochs, laid out on :data:`FRAME`.

    Attributes:
        label: the picture in words, for those who do not see it.
        warmup, selected: where the warm-up ends and the selected epoch stands, None where there is none.
    """

    title: str
    label: str
    series: list[Series]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    warmup: float | None
    selected: float | None


@dataclass(frozen=True)
class HeatMap:
    """h of each layer (down) by epoch (across, from 1) against the first mask.

    Attributes:
        image: PNG as a ``data:`` address, one pixel for each value.
        values: JSON, a list of values for each layer.
        label: the picture in words.
        top: the value that the colour scale ends at.
    """

    image: str
    values: str
    layers: list[tuple[str, str]]
    epochs: int
    top: float
    label: str


@dataclass(frozen=True)
class Frame:
    """The picture of a chart and the plotting area in it, in the picture's units (CSS pixels at 100 %)."""

    width: int = 360
    height: int = 216
    left: int = 52
    right: int = 350
    top: int = 30
    bottom: int = 182


FRAME = Frame()


@dataclass(frozen=True)
class RunView:
    """What the report shows of one run; method, arm, h and the like are None where nothing was searched.

    Attributes:
        removed: fraction of the weights, or of the FLOPs, that pruning removes; ``reduction`` says it in words.
        gamma: radius of the perturbations that the arm makes, None if it makes none.
        accuracies: for each evaluated stage clean and robust accuracy, the latter None without an attack.
        h: of the last mask against the first (Eq. 13).
        rises: loss difference by rho.
        table: for each epoch the readings that ``columns`` name, None where there is none.
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
    accuracies: Mapping[str, tuple[Accuracy, Accuracy | None]]
    measured: LambdaMax | None
    tracked: LambdaMax | None
    rises: Mapping[float, float]
    h: float | None
    seconds: float
    selected: int | None
    charts: list[Chart]
    heat_map: HeatMap | None
    columns: list[str]
    table: list[tuple[int, list[float | None]]]
    config: str
    environment: Mapping[str, Any]
    links: list[tuple[str, str]]


def write_report(
    runs: Path, out: Path, title: str | None = None, on_run: Callable[[], None] = lambda: None
) -> list[Skipped]:
    """Write the report of all runs under a folder; returns those that were skipped.

    Args:
        title: its heading; None is the folder's name.
        on_run: called for each run.

    Raises:
        InputError: if there is no such folder, or no finished run in it.
    """
    found, skipped = collect(runs)
    views, damaged = summarise(found, runs, out, on_run)
    skipped = sorted([*skipped, *damaged], key=lambda one: one.path)
    if not views:
        reason = f"{len(skipped)} skipped, first {skipped[0].reason}" if skipped else "make some with `s2ap-diag run`"
        raise InputError(f"{runs}: no finished run; {reason}")
    write_file(out, render(views, skipped, title or runs.resolve().name))
    return skipped


def summarise(
    runs: Sequence[Run], folder: Path, out: Path, on_run: Callable[[], None] = lambda: None
) -> tuple[list[RunView], list[Skipped]]:
    """What to show of each run, and those that cannot be shown because a file of theirs is damaged.

    Args:
        folder: names of runs are relative to it.
        out: the report's file; links are relative to its folder.
        on_run: called after each run.
    """
    views, skipped = [], []
    for run in runs:
        try:
            views.append(view(run, folder, out))
        except InputError as error:
            skipped.append(Skipped(run.path, str(error)))
        on_run()
    return views, skipped


def render(views: Sequence[RunView], skipped: Sequence[Skipped], title: str) -> str:
    """The report's HTML."""
    templates = Environment(
        loader=PackageLoader("s2ap_diag"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters["show"] = show
    style, script = (_own_file(name) for name in ("report.css", "report.js"))
    lambda_maxes = [v.measured for v in views]
    tracked = not any(lambda_maxes)
    if tracked:
        lambda_maxes = [v.tracked for v in views]
    html = templates.get_template("report.html.jinja").render(
        title=title,
        style=style,
        script=script,
        policy=_policy(style, script),
        views=views,
        skipped=skipped,
        lambda_maxes=lambda_maxes,
        tracked=tracked,
        modes=sorted({reading.mode for reading in lambda_maxes if reading}),
        rho=_common_rho(views),
        stages=STAGES,
        frame=FRAME,
        colours=_colour_stops(),
        version=version("s2ap-diag"),
    )
    # JSON and file names may hold half a surrogate pair, which no encoding can write.
    return html.encode("utf-8", "replace").decode("utf-8")


def view(run: Run, folder: Path, out: Path) -> RunView:
    """What to show of one run.

    Raises:
        InputError: if a file of the run is missing, damaged, or not of the form that the run writes.
    """
    results, config = _results(run), run.config
    distances = _distances(run) if results.prune else []
    losses = _losses(run, results)
    spectra = {mode: _spectra(run, mode) for mode in ("running", "batch") if results.prune}
    h = {epoch: distance.h for epoch, distance in enumerate(distances, 1)}
    warmup = config.minimizer.warmup if results.prune and config.minimizer.name != "none" else 0
    selected = results.prune.selected_epoch if results.prune else None
    charts = [
        chart("Robust validation loss", losses, warmup=warmup, selected=selected),
        *(chart(f"λ_max, BatchNorm {mode}", curves, log=True, thin=ALL, warmup=warmup, selected=selected)
          for mode, curves in spectra.items()),
        chart("h to the first mask", {"h": h}, from_zero=True, warmup=warmup, selected=selected),
    ]  # fmt: skip
    columns = {
        **{f"loss, {stage}": values for stage, values in losses.items()},
        **{
            f"λ_max of {name}, BatchNorm {mode}": values
            for mode, curves in spectra.items()
            for name, values in curves.items()
        },
        "h": h,
    }
    sharpness = _sharpness(run)
    removed, reduction = _removed(config) if results.prune else (None, "dense")
    return RunView(
        name=run.path.relative_to(folder).as_posix() if run.path != folder else run.path.resolve().name,
        title=config.title,
        data=config.data.name,
        network=config.network.name,
        method=config.method.name if results.prune else None,
        arm=arm(config, finetuned=results.finetune is not None) if results.prune else None,
        gamma=_gamma(config, finetuned=results.finetune is not None) if results.prune else None,
        removed=removed,
        reduction=reduction,
        seed=config.seed,
        accuracies={stage: _accuracies(found) for stage, found in results.evaluated.items()},
        measured=LambdaMax(sharpness.lambda_max, sharpness.lambda_max_live, sharpness.batch_norm)
        if sharpness
        else None,
        tracked=_last_tracked(spectra),
        rises={rho: rise.mean for rho, rise in sharpness.loss_difference.items()} if sharpness else {},
        h=distances[-1].h if distances else None,
        seconds=float(run.timing["seconds"].sum()),
        selected=selected,
        charts=[drawn for drawn in charts if drawn is not None],
        heat_map=heat_map(distances) if distances else None,
        columns=[name for name, values in columns.items() if values],
        table=_by_epoch([values for values in columns.values() if values]),
        config=config.to_toml(),
        environment=run.environment,
        links=list(_links(run.path, out)),
    )


def arm(config: Config, *, finetuned: bool) -> str:
    """The arm of the comparison: what perturbs the search, and whether the finetuning is the one that goes with it.

    The paper finetunes Orig. plainly and S2AP with AWP; ``orig-awp`` and ``s2ap-plain`` are crossed. A search
    that nothing is finetuned after is ``orig``, ``s2ap`` or ``awp`` alone.
    """
    searched = {"none": "orig"}.get(config.minimizer.name, config.minimizer.name)
    if not finetuned or searched == "awp":
        return searched
    crossed = {("orig", True): "orig-awp", ("s2ap", False): "s2ap-plain"}
    return crossed.get((searched, config.finetune.awp), searched)


def _gamma(config: Config, *, finetuned: bool) -> float | None:
    if config.minimizer.name != "none":
        return config.minimizer.gamma
    if finetuned and config.finetune.awp:
        return config.finetune.gamma or config.minimizer.gamma
    return None


def _removed(config: Config) -> tuple[float, str]:
    """The fraction of weights or FLOPs that goes, and the same as the field says it."""
    reduction = config.method.flops_reduction
    if config.method.name.endswith("-channels") and reduction is not None:
        return 1 - 1 / reduction, f"{reduction:.4g}× FLOPs"
    return 1 - config.method.keep, f"{100 * (1 - config.method.keep):.4g} %"


def show(value: float | None) -> str:
    """A number with four significant digits, without an exponent below a million; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


# Reading one run's files


Model = TypeVar("Model", bound=BaseModel)


def _parse(model: type[Model], found: Any, file: Path, remedy: str) -> Model:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{file}: {key}: {first['msg']}; {remedy}") from error


def _results(run: Run) -> _Results:
    file, remedy = run.path / "results.json", "run again with --resume"
    if not isinstance(run.results, dict):
        raise InputError(f"{file}: not a JSON object; {remedy}")
    evaluated = {stage: run.results[f"evaluate-{stage}"] for stage in STAGES if f"evaluate-{stage}" in run.results}
    stages = {stage: run.results[stage] for stage in ("prune", "finetune") if stage in run.results}
    return _parse(_Results, {**stages, "evaluated": evaluated}, file, remedy)


def _sharpness(run: Run) -> _Sharpness | None:
    found = run.sharpness
    return None if found is None else _parse(_Sharpness, found, run.path / SHARPNESS, "measure it again")


def _accuracies(found: _Evaluated) -> tuple[Accuracy, Accuracy | None]:
    def accuracy(value: float, interval: tuple[float, float], under: str) -> Accuracy:
        return Accuracy(100 * value, (100 * interval[0], 100 * interval[1]), f"{found.n} images{under}")

    clean = accuracy(found.clean_accuracy, found.clean_interval, "")
    if found.robust_accuracy is None or found.robust_interval is None:
        return clean, None
    under = f", {found.attack}, {found.norm}, eps {found.eps}"
    return clean, accuracy(found.robust_accuracy, found.robust_interval, under)


def _losses(run: Run, results: _Results) -> dict[str, dict[int, float]]:
    """Robust validation loss by epoch, of the search and after it, or of the dense network if that is all."""
    if results.prune:
        return {"search": _curve(run, "val_loss"), "finetuning": _curve(run, "val_loss", "finetune")}
    trained = (run.path / "metrics.csv").is_file()  # there is none where the dense network was given
    return {"pretraining": _curve(run, "val_loss", "pretrain") if trained else {}}


def _curve(run: Run, metric: str, stage: str = "prune") -> dict[int, float]:
    """A metric by epoch, finite values only."""
    if not pd.api.types.is_numeric_dtype(run.metrics["epoch"]):
        raise InputError(f"{run.path / 'metrics.csv'}: an epoch is not a number; run again with --resume")
    found = run.tracked(metric, stage)
    return {int(epoch): float(v) for epoch, v in found.items() if math.isfinite(epoch) and math.isfinite(v)}


def _spectra(run: Run, mode: str) -> dict[str, dict[int, float]]:
    """lambda_max by epoch in a mode of BatchNorm: of the live channels' scores, and as the paper defines it."""
    return {LIVE: _curve(run, f"lambda_max_live_{mode}"), ALL: _curve(run, f"lambda_max_{mode}")}


def _distances(run: Run) -> list[Hamming]:
    """The distance of each epoch's mask, from 1, to the first; one mask at a time is held beside the first."""
    files = RunDirectory(run.path, run.config)
    first = open_packed_masks(files.masks(0))
    return [hamming(first, open_packed_masks(files.masks(e))) for e in range(1, run.config.prune.epochs + 1)]


def _last_tracked(spectra: Mapping[str, Mapping[str, Mapping[int, float]]]) -> LambdaMax | None:
    """The mean over the last epoch's readings, preferably with running statistics, as ``sharpness`` measures."""
    for mode, curves in spectra.items():
        if any(curves.values()):
            last = max(epoch for values in curves.values() for epoch in values)
            return LambdaMax(curves[ALL].get(last), curves[LIVE].get(last), mode)
    return None


def _by_epoch(columns: Sequence[Mapping[int, float]]) -> list[tuple[int, list[float | None]]]:
    epochs = sorted({epoch for values in columns for epoch in values})
    return [(epoch, [values.get(epoch) for values in columns]) for epoch in epochs]


def _links(run: Path, out: Path) -> Iterator[tuple[str, str]]:
    base = os.path.relpath(run.resolve(), out.resolve().parent)
    for name in LINKED:
        if (run / name).exists():
            slash = "/" if (run / name).is_dir() else ""
            yield name + slash, quote(os.fsencode(os.path.join(base, name))) + slash


# Pictures


def chart(
    title: str,
    curves: Mapping[str, Mapping[int, float]],
    *,
    log: bool = False,
    from_zero: bool = False,
    thin: str | None = None,
    warmup: int = 0,
    selected: int | None = None,
) -> Chart | None:
    """Curves by epoch, one or two; None if there is no reading at all.

    Args:
        log: a logarithmic axis where all values are positive.
        from_zero: let the axis start at zero.
        thin: the curve that is drawn thin where another stands beside it.
        warmup, selected: number of warm-up epochs of the search, and the epoch that it handed on.
    """
    curves = {name: values for name, values in curves.items() if values}
    if not curves:
        return None
    readings = [v for values in curves.values() for v in values.values()]
    epochs = [epoch for values in curves.values() for epoch in values]
    log = log and min(readings) > 0
    across = _scale(min(epochs), max(epochs), FRAME.left, FRAME.right)
    up, values = _upright(0.0 if from_zero else min(readings), max(readings), log=log)
    series = [
        _series(name, by_epoch, across, up, thin=name == thin and len(curves) > 1) for name, by_epoch in curves.items()
    ]
    shown = [e for e in MaxNLocator(5, integer=True).tick_values(min(epochs), max(epochs)) if e in epochs]
    return Chart(
        title=title,
        label=f"{title} by epoch{', logarithmic' if log else ''}. {'; '.join(one.label for one in series)}.",
        series=series,
        x_ticks=[Tick(across(e), f"{e:g}") for e in shown],
        y_ticks=[Tick(up(v), _short_number(v)) for v in values],
        warmup=across(min(warmup, max(epochs))) if warmup > min(epochs) else None,
        selected=across(selected) if selected is not None and min(epochs) <= selected <= max(epochs) else None,
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The map of [low, high] onto [start, end] to a tenth; a single value comes to stand in the middle."""
    if low == high:
        return lambda value: round((start + end) / 2, 1)
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _upright(low: float, high: float, *, log: bool) -> tuple[Callable[[float], float], list[float]]:
    """The map of values onto the frame's height, and the values of the ticks, round ones."""
    if log:  # from one power of ten to another, five ticks at most
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        exponents = range(first, last + 1, math.ceil((last - first) / 4))
        by_exponent = _scale(first, last, FRAME.bottom, FRAME.top)
        return (lambda value: by_exponent(math.log10(value))), [10.0**e for e in exponents]
    ticks = [float(v) for v in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return _scale(ticks[0], ticks[-1], FRAME.bottom, FRAME.top), ticks


def _series(
    name: str,
    by_epoch: Mapping[int, float],
    across: Callable[[float], float],
    up: Callable[[float], float],
    *,
    thin: bool,
) -> Series:
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    lowest, highest = min(epochs, key=by_epoch.__getitem__), max(epochs, key=by_epoch.__getitem__)
    return Series(
        name=name,
        points=" ".join(f"{across(epoch):g},{up(value):g}" for epoch, value in zip(epochs, values, strict=True)),
        epochs=json.dumps(epochs, separators=(",", ":")),
        values=_compact(values),
        label=f"{name}: {show(values[0])} at epoch {epochs[0]}, {show(values[-1])} at epoch {epochs[-1]}, "
        f"lowest {show(by_epoch[lowest])} at {lowest}, highest {show(by_epoch[highest])} at {highest}",
        thin=thin,
    )


def _compact(values: Sequence[float]) -> str:
    """A JSON list, four significant digits each."""
    return f"[{','.join(f'{value:.4g}' for value in values)}]"


def _short_number(value: float) -> str:
    """For a tick: 0.25, 10000, 1e5."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def heat_map(distances: Sequence[Hamming]) -> HeatMap:
    """h of each layer by epoch; the colour scale goes from 0 to the largest value."""
    layers = list(distances[0].layers)
    values = np.array([[distance.layers[layer] for distance in distances] for layer in layers])
    row, column = np.unravel_index(values.argmax(), values.shape)
    top = float(values[row, column])
    shades = colormaps[COLOUR_MAP](values / (top or 1.0), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shades)).save(buffer, "PNG", optimize=True)
    return HeatMap(
        image="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        values=f"[{','.join(map(_compact, values))}]",
        layers=[(name := layer.removesuffix(".weight"), _shorten(name)) for layer in layers],
        epochs=len(distances),
        top=top,
        label=f"Heat map of the Hamming distance h to the first mask: {len(layers)} layers down, epochs 1 to "
        f"{len(distances)} across. Largest: {show(top)} in {layers[row]} at epoch {column + 1}.",
    )


def _shorten(name: str) -> str:
    if len(name) <= LABEL_LENGTH:
        return name
    half = (LABEL_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _colour_stops() -> list[tuple[int, str]]:
    """The colour map as stops of a gradient, in percent."""
    return [
        (percent, "#{:02x}{:02x}{:02x}".format(*colormaps[COLOUR_MAP](percent / 100, bytes=True)[:3]))
        for percent in range(0, 101, 20)
    ]


# The page


def _own_file(name: str) -> str:
    return (resources.files("s2ap_diag") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is loaded or run but this style, this script and images that the page itself holds."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _common_rho(views: Sequence[RunView]) -> float | None:
    """The largest rho that all runs with a loss difference have, so that a column compares like with like."""
    measured = [set(v.rises) for v in views if v.rises]
    return max(set.intersection(*measured), default=None) if measured else None
