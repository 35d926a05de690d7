"""Trade-offs: settings against outcomes over all runs of a network, and robust accuracy against what a mask costs."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from s2ap_diag.report.axes import Axis, Tick
from s2ap_diag.report.charts import Chart, Dot, Series, draw, show
from s2ap_diag.report.table import MOST_OPTIONS, varying
from s2ap_diag.report.view import RunView

SEEDS = ("seed", "data.options.fold")
"""Settings that tell the runs of one arm apart; an axis of them shows nothing."""

MOST_AXES = 7
"""Settings that are drawn; of more nobody could follow a line."""

FEWEST_RUNS = 4
"""Runs from which lines across axes show more than the table."""

ROOM = 1120
"""CSS pixels that the axes fit into at a width of 1280, as long as they need not stand closer than can be read."""

LETTER = 8.2
"""CSS pixels that a letter of an axis's name takes, about."""

WIDE = 20
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

Number = float | None

OUTCOMES: Mapping[str, Callable[[RunView], Number]] = {
    "clean, %": lambda view: None if (best := view.best) is None else best[0].percent,
    "robust, %": lambda view: None if (best := view.best) is None or best[1] is None else best[1].percent,
    "live λ_max": lambda view: None if (reading := view.measured or view.tracked) is None else reading.live,
    "h": lambda view: view.h,
    "FLOPs kept, %": lambda view: None if view.cost is None or view.cost.flops is None else 100 * view.cost.flops,
    "density, %": lambda view: None if view.cost is None else 100 * view.cost.density,
    "ms per image": lambda view: view.latency,
}

COSTS = ("FLOPs kept, %", "density, %", "ms per image")


@dataclass(frozen=True)
class Lane:
    """An axis of the parallel coordinates, at ``x``."""

    name: str
    x: float
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class Line:
    """A run across the axes.

    Attributes:
        run, mark: number of the run in the page, and of its arm.
        label: the run and its values in words.
    """

    points: str
    run: int
    mark: int
    label: str


@dataclass(frozen=True)
class Parallel:
    """Settings and outcomes side by side, a line for each run; what is missing lies below the axes.

    Attributes:
        staggered: whether the axes' names stand in two rows, since they would touch in one.
    """

    label: str
    width: int
    height: int
    missing: float | None
    lanes: Sequence[Lane]
    lines: Sequence[Line]
    staggered: bool


@dataclass(frozen=True)
class Tradeoff:
    """The trade-offs of one data set, network and attack.

    Attributes:
        arms: method and arm, and the number that decides their colour and marker.
        fronts: robust accuracy against each cost that was measured.
    """

    title: str
    arms: Sequence[tuple[str, int]]
    parallel: Parallel | None
    fronts: Sequence[Chart]


def tradeoffs(views: Sequence[RunView]) -> list[Tradeoff]:
    """Draw the trade-offs of the pruned runs, of each data set, network and attack by itself."""
    grouped: dict[str, list[tuple[int, RunView]]] = {}
    for number, view in enumerate(views, 1):
        if view.method is not None and view.best is not None:
            under = (view.best[1] or view.best[0]).under
            grouped.setdefault(f"{view.network} on {view.data}, {under}", []).append((number, view))
    found = [_tradeoff(title, runs) for title, runs in grouped.items()]
    return [one for one in found if one.parallel or one.fronts]


def _tradeoff(title: str, runs: Sequence[tuple[int, RunView]]) -> Tradeoff:
    fronts = [front for name in COSTS if (front := _front(name, runs)) is not None]
    return Tradeoff(title, list(dict.fromkeys(_arm(view) for _, view in runs)), _parallel(runs), fronts)


def _arm(view: RunView) -> tuple[str, int]:
    """Name method and arm, with their number; a run that says the same as another one is in no group."""
    return (f"{view.method} {view.arm}", 0) if view.mark is None else view.mark.method


def _parallel(runs: Sequence[tuple[int, RunView]]) -> Parallel | None:
    """Lay out settings, then outcomes; None for few runs, or runs that differ in no setting."""
    views = [view for _, view in runs]
    settings = [key for key in varying(views) if key not in SEEDS]
    values = {key: [view.settings.get(key) for view in views] for key in settings}
    chosen = [key for key in settings if len(set(values[key])) <= MOST_OPTIONS][:MOST_AXES]
    outcomes = {name: [read(view) for view in views] for name, read in OUTCOMES.items()}
    outcomes = {name: read for name, read in outcomes.items() if len({v for v in read if v is not None}) > 1}
    if len(runs) < FEWEST_RUNS or not chosen or not outcomes:
        return None
    top, bottom, start = 44, 280, 60
    names = _short(chosen)
    scales = [(names[key], *_scale_words(values[key], bottom, top)) for key in chosen]
    scales += [(name, *_scale_numbers(read, bottom, top, most=3)) for name, read in outcomes.items()]
    step = min(150, max(105, ROOM // len(scales)))
    xs = [start + step * i for i in range(len(scales))]
    places = [places for _, _, places in scales]
    missing = bottom + 26.0
    lines = []
    for index, (number, view) in enumerate(runs):
        at = [place[index] for place in places]
        said = [f"{names[key]} {values[key][index] or '–'}" for key in chosen]
        said += [f"{name} {show(read[index])}" for name, read in outcomes.items()]
        points = " ".join(f"{x},{missing if y is None else y:g}" for x, y in zip(xs, at, strict=True))
        lines.append(Line(points, number, _arm(view)[1], f"{view.name}: {', '.join(said)}"))
    return Parallel(
        label=f"{len(runs)} runs across {', '.join(name for name, _, _ in scales)}. The table has the values.",
        width=xs[-1] + 80,
        height=bottom + 40,
        missing=missing if any(y is None for place in places for y in place) else None,
        lanes=[Lane(name, x, ticks) for (name, ticks, _), x in zip(scales, xs, strict=True)],
        lines=lines,
        staggered=any(
            LETTER * (len(a) + len(b)) / 2 > step for a, b in itertools.pairwise([name for name, _, _ in scales])
        ),
    )


def _scale_words(texts: Sequence[str | None], bottom: int, top: int) -> tuple[list[Tick], list[float | None]]:
    """Place a setting's values: numbers to scale, words evenly."""
    numbers = [_float(text) for text in texts]
    if all(number is not None for text, number in zip(texts, numbers, strict=True) if text is not None):
        return _scale_numbers(numbers, bottom, top, most=6)
    names = sorted({text for text in texts if text is not None})
    step = (bottom - top) / max(len(names) - 1, 1)
    at = {name: round(bottom - step * i, 1) for i, name in enumerate(names)}
    return [Tick(place, name) for name, place in at.items()], [None if text is None else at[text] for text in texts]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Name settings by their last part, or by the section where that is but a name; whole where two end alike."""
    last = {key: key.removesuffix(".name").rpartition(".")[2] for key in keys}
    ends = Counter(last.values())
    return {key: name if ends[name] == 1 else key for key, name in last.items()}


def _scale_numbers(
    numbers: Sequence[Number], bottom: int, top: int, most: int
) -> tuple[list[Tick], list[float | None]]:
    there = sorted({number for number in numbers if number is not None and math.isfinite(number)})
    low, high = there[0], there[-1]
    log = low > 0 and high / low >= WIDE
    axis = Axis(low, high, bottom, top, log, tuple(there if len(there) <= most else (low, high)))
    ticks = [Tick(axis(value), show(value)) for value in axis.values]
    return ticks, [None if n is None or not math.isfinite(n) else axis(n) for n in numbers]


def _float(text: str | None) -> Number:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _front(name: str, runs: Sequence[tuple[int, RunView]]) -> Chart | None:
    """Draw robust accuracy against a cost: a dot for each run, the means of each arm and budget, their Pareto front."""
    read = OUTCOMES[name]
    points: list[tuple[float, float, int, RunView]] = []
    for number, view in runs:
        spent, robust = read(view), OUTCOMES["robust, %"](view)
        if spent is not None and robust is not None:
            points.append((spent, robust, number, view))
    if len({spent for spent, *_ in points}) < 2:
        return None
    costs, accuracies = [x for x, *_ in points], [y for _, y, *_ in points]
    log = min(costs) > 0 and max(costs) / min(costs) >= WIDE
    along, up = Axis.lying(min(costs), max(costs), log=log), Axis.upright(min(accuracies), max(accuracies))
    dots = [
        Dot(
            along(x),
            up(y),
            _arm(view)[1],
            "",
            f"{view.name}: {name} {show(x)}, robust {y:.1f} %",
            number,
            "one",
        )
        for x, y, number, view in points
    ]
    means: dict[tuple[tuple[str, int], str], list[tuple[float, float]]] = {}
    for x, y, _, view in points:
        means.setdefault((_arm(view), view.reduction), []).append((x, y))
    placed = {
        key: (float(np.mean([x for x, _ in of])), float(np.mean([y for _, y in of]))) for key, of in means.items()
    }
    front = pareto(list(placed.values()))
    for ((arm, mark), reduction), (x, y) in placed.items():
        on = " on the front" if (x, y) in front else ""
        said = f"{arm}, {reduction}, mean: {name} {show(x)}, robust {y:.1f} %{on}"
        dots.append(Dot(along(x), up(y), mark, "", said, None, "mean"))
    series: list[Series] = [draw("Pareto front", dict(front), along, up, "front", place=name, read=False)]
    best = "; ".join(dot.label for dot in dots if dot.label.endswith("front"))
    return Chart(
        title=f"Robust accuracy, % against {name}", label=f"Robust accuracy against {name}. {best}.", across=name,
        x_ticks=along.ticks, y_ticks=up.ticks, series=series, dots=dots,
    )  # fmt: skip


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Choose the points (cost, accuracy) that no other is at least as good as in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front
