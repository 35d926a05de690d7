"""The pictures of a run, as values that the template draws: curves over epochs and a heat map of the layers."""

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from PIL import Image

from s2ap_diag.stability import Hamming

COLOUR_MAP = "cividis"
"""Its lightness rises evenly, so that it reads in grey; as in the other pictures of layers."""

LABEL_LENGTH = 20
"""Characters of a layer's name that there is room for beside the heat map."""


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
    """Map [low, high] onto [start, end] to a tenth; a single value comes to stand in the middle."""
    if low == high:
        return lambda value: round((start + end) / 2, 1)
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _upright(low: float, high: float, *, log: bool) -> tuple[Callable[[float], float], list[float]]:
    """Map values onto the frame's height, and choose the values of the ticks, round ones."""
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
    """Write a JSON list, four significant digits each."""
    return f"[{','.join(f'{value:.4g}' for value in values)}]"


def _short_number(value: float) -> str:
    """Write a tick's number: 0.25, 10000, 1e5."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def heat_map(distances: Sequence[Hamming]) -> HeatMap:
    """Paint h of each layer by epoch; the colour scale goes from 0 to the largest value."""
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


def colour_stops() -> list[tuple[int, str]]:
    """Give the colour map as stops of a gradient, in percent."""
    return [
        (percent, "#{:02x}{:02x}{:02x}".format(*colormaps[COLOUR_MAP](percent / 100, bytes=True)[:3]))
        for percent in range(0, 101, 20)
    ]


def show(value: float | None) -> str:
    """Write a number with four significant digits, without an exponent below a million; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"
