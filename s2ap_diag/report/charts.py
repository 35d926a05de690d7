"""Charts as values that the template draws: curves over epochs, and dots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from s2ap_diag.report.axes import Axis, Tick


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        points: of an SVG polyline.
        epochs, values: what the points stand for, as JSON lists; values empty where nothing reads them.
        label: the curve in words.
        style: its classes in the page's style.
        mark: number of its arm, which decides colour and marker; None where the style does.
    """

    name: str
    points: str
    epochs: str
    values: str
    label: str
    style: str
    mark: int | None = None


@dataclass(frozen=True)
class Dot:
    """A point by itself, of two values.

    Attributes:
        mark: number of its arm, which decides colour and marker.
        bars: an SVG path of its intervals, empty where it has none.
        label: what it is, and its values in words.
        run: number of the run that it shows, None of a mean.
        style: its classes in the page's style.
    """

    x: float
    y: float
    mark: int
    bars: str
    label: str
    run: int | None
    style: str


@dataclass(frozen=True)
class Chart:
    """Curves and dots, laid out on :data:`~s2ap_diag.report.axes.FRAME`.

    Attributes:
        label: the picture in words, for those who do not see it.
        across: what the horizontal axis is of.
        key: whether the names of the curves stand in the picture.
        warmup, selected: where the warm-up ends and the selected epoch stands, None where there is none.
    """

    title: str
    label: str
    across: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    key: bool = False
    warmup: float | None = None
    selected: float | None = None


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
    """Lay out curves by epoch, one or two; None if there is no reading at all.

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
    across = Axis.across(min(epochs), max(epochs), epochs)
    up = Axis.upright(0.0 if from_zero else min(readings), max(readings), log=log)
    styles = [f"s{i}{' thin' if name == thin and len(curves) > 1 else ''}" for i, name in enumerate(curves, 1)]
    series = [
        draw(name, by_epoch, across, up, style) for (name, by_epoch), style in zip(curves.items(), styles, strict=True)
    ]
    return Chart(
        title=title,
        label=f"{title} by epoch{', logarithmic' if log else ''}. {'; '.join(one.label for one in series)}.",
        across="epoch",
        x_ticks=across.ticks,
        y_ticks=up.ticks,
        series=series,
        key=list(curves) != ["h"],
        warmup=across(min(warmup, max(epochs))) if warmup > min(epochs) else None,
        selected=across(selected) if selected is not None and min(epochs) <= selected <= max(epochs) else None,
    )


def draw(
    name: str, by_place: Mapping[int, float] | Mapping[float, float], across: Axis, up: Axis, style: str,
    *, mark: int | None = None, place: str = "epoch", read: bool = True,
) -> Series:  # fmt: skip
    """Lay out a curve.

    Args:
        by_place: its values by what stands across.
        style, mark: as for :class:`Series`.
        place: what stands across, in words.
        read: whether the page reads its values out.
    """
    points = sorted(by_place.items())
    places, values = [at for at, _ in points], [value for _, value in points]
    lowest, highest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return Series(
        name=name,
        points=" ".join(f"{across(at):g},{up(value):g}" for at, value in points),
        epochs=f"[{','.join(f'{at:g}' for at in places)}]",
        values=_compact(values) if read else "",
        label=f"{name}: {show(values[0])} at {place} {places[0]:g}, {show(values[-1])} at {place} {places[-1]:g}, "
        f"lowest {show(lowest[1])} at {lowest[0]:g}, highest {show(highest[1])} at {highest[0]:g}",
        style=style,
        mark=mark,
    )


def _compact(values: Sequence[float]) -> str:
    """Write a JSON list, four significant digits each."""
    return f"[{','.join(f'{value:.4g}' for value in values)}]"


def show(value: float | None) -> str:
    """Write a number with four significant digits, without an exponent below a million; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"
