"""The charts of a group: one kind each of sharpness, stability and accuracy, all arms in it, a facet for each setting.

An arm has its colour and its marker. Its seeds, or folds, are thin lines and small dots, their mean is thick.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_core.runs import course
from s2ap_diag.comparison.metrics import unit_means
from s2ap_diag.comparison.statistics import paired_difference
from s2ap_diag.reading.results import Run
from s2ap_diag.report.axes import Axis
from s2ap_diag.report.charts import Chart, Dot, Series, draw
from s2ap_diag.report.groups import Facet, Group
from s2ap_diag.report.measured import Curve, read_results, read_sharpness

Numbers = Mapping[str, int]
"""The number of a run in the page, by its path."""

STAGES = {"prune": "raw mask", "finetune": "finetuned"}


@dataclass(frozen=True)
class Panel:
    """The charts of one kind, one for each facet that has such readings, all on the same scales."""

    title: str
    note: str
    charts: Sequence[tuple[str, Chart]]


@dataclass(frozen=True)
class _Lines:
    """The curves of an arm: one for each seed, their mean, and the mean of a second reading, or none."""

    mark: int
    arm: str
    seeds: Sequence[Mapping[float, float]]
    mean: Mapping[float, float]
    second: Mapping[float, float]


def overlays(group: Group, numbers: Numbers) -> list[Panel]:
    """Draw what there are readings of.

    Args:
        numbers: of the runs that the page shows.

    Raises:
        InputError: if a file of a run is missing or damaged.
    """
    mode = _mode(group)
    panels = [
        _curves(
            group, "λ_max over the search", f"BatchNorm {mode}. Thick: of live channels. Dotted: of all scores, as the "
            "paper defines it.", lambda run, _: run.curve(f"lambda_max_live_{mode}"),
            second=lambda run: run.curve(f"lambda_max_{mode}"), geometric=True, log=True,
        ),
        _curves(
            group, "Loss difference against ρ", "At the selected scores; at least that, as far as it was found.",
            lambda run, _: _rises(run), across="ρ", log=True,
        ),
        _curves(
            group, "h after the warm-up", "To the mask before the search (Eq. 13).", _later_h,
        ),
        _accuracies(group, numbers),
    ]  # fmt: skip
    return [panel for panel in panels if panel.charts]


def _mode(group: Group) -> str:
    tracked = {str(metric) for run in group.runs for metric in run.metrics["metric"].unique()}
    modes = ("running", "batch", "none")
    return next((mode for mode in modes if any(metric.endswith(f"_{mode}") for metric in tracked)), modes[0])


def _rises(run: Run) -> Curve:
    record = read_sharpness(run)
    return {} if record is None else {rho: rise.mean for rho, rise in record.loss_difference.items()}  # type: ignore[misc]


def _later_h(run: Run, warmup: int) -> Curve:
    return {int(epoch): float(h) for epoch, h in run.stability.items() if epoch > warmup}


def _curves(
    group: Group,
    title: str,
    note: str,
    read: Callable[[Run, int], Curve],
    *,
    second: Callable[[Run], Curve] | None = None,
    across: str = "epoch",
    geometric: bool = False,
    log: bool = False,
) -> Panel:
    facets = []
    for facet in group.facets:
        lines = []
        # The longest of the facet: Orig. has none of its own.
        warmup = max(course.warmup(run.config) for seeds in facet.arms.values() for run in seeds.values())
        for arm, seeds in facet.arms.items():
            curves = [_points(curve) for run in seeds.values() if (curve := read(run, warmup))]
            others = [_points(curve) for run in seeds.values() if second and (curve := second(run))]
            if curves or others:
                means = (_mean(curves, geometric), _mean(others, geometric))
                lines.append(_Lines(group.marks[arm], arm, curves, *means))
        if lines:
            facets.append((facet.title, lines))
    shown = [curve for _, lines in facets for one in lines for curve in (*one.seeds, one.mean, one.second) if curve]
    if not shown:
        return Panel(title, note, [])
    places = [at for curve in shown for at in curve]
    values = [value for curve in shown for value in curve.values()]
    log = log and min(values) > 0
    up = Axis.upright(min(values) if log else min(0.0, *values), max(values), log=log)
    if across == "epoch":
        along = Axis.across(min(places), max(places), places)
    else:
        along = Axis.lying(min(places), max(places), log=min(places) > 0 and len(set(places)) > 1)
    charts = [(name, _chart(title, name, lines, along, up, across)) for name, lines in facets]
    return Panel(title, note, charts)


def _points(curve: Curve) -> dict[float, float]:
    return {float(at): value for at, value in curve.items()}


def _mean(curves: Sequence[Mapping[float, float]], geometric: bool) -> dict[float, float]:
    """Average curves where all have a value; geometrically where that is asked for and possible."""
    if not curves:
        return {}
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = {}
    for at in common:
        values = np.array([curve[at] for curve in curves])
        logs = geometric and (values > 0).all()
        means[at] = float(np.exp(np.log(values).mean()) if logs else values.mean())
    return means


def _chart(title: str, facet: str, lines: Sequence[_Lines], along: Axis, up: Axis, across: str) -> Chart:
    series: list[Series] = []
    for one in lines:

        def add(curve: Mapping[float, float], style: str, name: str = one.arm, mark: int = one.mark) -> None:
            series.append(draw(name, curve, along, up, style, mark=mark, place=across, read=style != "fold"))

        for curve in one.seeds if len(one.seeds) > 1 else ():
            add(curve, "fold")
        if one.second:
            add(one.second, "paper", f"{one.arm}, all scores")
        if one.mean:
            add(one.mean, "mean")
    said = "; ".join(one.label for one in series if one.style != "fold")
    logs = ", logarithmic" if up.log else ""
    return Chart(
        title=facet,
        label=f"{title}, {facet}, by {across}{logs}. {said}.",
        across=across,
        x_ticks=along.ticks,
        y_ticks=up.ticks,
        series=series,
    )


def _accuracies(group: Group, numbers: Numbers) -> Panel:
    """Draw robust against clean accuracy: a dot for each run, the arms' means with their intervals."""
    facets = [(facet.title, _dots(group, facet, numbers)) for facet in group.facets]
    found = [(facet, dots) for facet, dots in facets if dots]
    title, note = "Robust against clean accuracy", (
        "In percent. Small: each seed. Large: the mean, with its 95 % interval over seeds from three on. "
        "Filled: finetuned. Open: raw mask."
    )  # fmt: skip
    if not found:
        return Panel(title, note, [])
    x, y = ([value for _, dots in found for dot in dots for value in dot.reach(i)] for i in (0, 1))
    along, up = Axis.lying(max(min(x), 0.0), min(max(x), 100.0)), Axis.upright(max(min(y), 0.0), min(max(y), 100.0))
    charts = []
    for facet, dots in found:
        drawn = [dot.drawn(along, up) for dot in dots]
        means = "; ".join(dot.label for dot in drawn if "mean" in dot.style)
        charts.append((facet, Chart(
            title=facet, label=f"{title}, {facet}. {means}.", across="clean accuracy, %", x_ticks=along.ticks,
            y_ticks=up.ticks, dots=drawn,
        )))  # fmt: skip
    return Panel(title, note, charts)


@dataclass(frozen=True)
class _Accuracy:
    """Clean and robust accuracy in percent, each with its interval or none."""

    values: tuple[float, float]
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None]
    mark: int
    name: str
    run: int | None
    style: str

    def reach(self, i: int) -> tuple[float, ...]:
        """Give the values that have to be inside of the axis."""
        return (self.values[i], *(self.intervals[i] or ()))

    def drawn(self, along: Axis, up: Axis) -> Dot:
        x, y = along(self.values[0]), up(self.values[1])
        within = [interval and [min(max(v, a.low), a.high) for v in interval]
                  for interval, a in zip(self.intervals, (along, up), strict=True)]  # fmt: skip
        bars = (f"M{along(within[0][0])},{y}H{along(within[0][1])}" if within[0] else "") + (
            f"M{x},{up(within[1][0])}V{up(within[1][1])}" if within[1] else ""
        )
        said = [
            f"{word} {value:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
            for word, value, interval in zip(("clean", "robust"), self.values, self.intervals, strict=True)
        ]
        return Dot(x, y, self.mark, bars, f"{self.name}: {', '.join(said)}", self.run, self.style)


def _dots(group: Group, facet: Facet, numbers: Numbers) -> list[_Accuracy]:
    dots = []
    for arm, seeds in facet.arms.items():
        mark = group.marks[arm]
        for stage, name in STAGES.items():
            by_seed = {}
            for seed, run in seeds.items():
                evaluated = read_results(run).evaluated.get(stage)
                if evaluated is not None and evaluated.robust_accuracy is not None:
                    by_seed[seed] = (100 * evaluated.clean_accuracy, 100 * evaluated.robust_accuracy)
                    said = f"{arm}, {name}, seed {seed[0]}{f', fold {seed[1]}' if seed[1] >= 0 else ''}"
                    number = numbers.get(run.path.as_posix())
                    dots.append(_Accuracy(by_seed[seed], (None, None), mark, said, number, f"{stage} one"))
            if by_seed:
                means = [paired_difference(unit_means({s: pair[i] for s, pair in by_seed.items()})) for i in (0, 1)]
                values = (means[0].mean, means[1].mean)
                intervals = (means[0].interval, means[1].interval)
                dots.append(_Accuracy(values, intervals, mark, f"{arm}, {name}, mean", None, f"{stage} mean"))
    return sorted(dots, key=lambda dot: "mean" in dot.style)
