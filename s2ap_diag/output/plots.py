"""The pictures, in the look of :mod:`s2ap_diag.display.style`, whose names stand here too."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_diag.curvature.density import SpectralDensity
from s2ap_diag.display.sheet import STYLE as STYLE
from s2ap_diag.display.style import COLORS as COLORS
from s2ap_diag.display.style import COLUMN as COLUMN
from s2ap_diag.display.style import LINES as LINES
from s2ap_diag.display.style import MARKERS as MARKERS
from s2ap_diag.display.style import layer_bars as layer_bars
from s2ap_diag.display.style import look as look

STABLE, UNSTABLE = "#009E73", "#D55E00"


@contextmanager
def picture(file: Path, width: float, height: float, panels: int = 1, rows: int = 1):  # type: ignore[no-untyped-def]
    """Open a figure with so many panels, in rows, written to ``file`` as by :func:`canvas`."""
    with canvas([file], width, height) as figure:
        axes = [figure.add_subplot(rows, -(-panels // rows), i + 1) for i in range(panels)]
        yield axes if panels > 1 else axes[0]


@contextmanager
def canvas(files: Sequence[Path], width: float, height: float) -> Iterator[Figure]:
    """Open an empty figure, written to each of the files when the block ends; the same drawing gives the same bytes.

    Args:
        files: names that end in .png, .pdf or .svg.
        width, height: in inches.

    Raises:
        InputError: if the ending of a file is of no known picture format.
    """
    undated: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    kinds = {file: file.suffix.lstrip(".").lower() for file in files}
    for file, kind in kinds.items():
        if kind not in undated:
            raise InputError(f"--plot {file}: end the name in .png, .pdf or .svg")
    with mpl.rc_context(STYLE | {"svg.hashsalt": "s2ap"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        for file, kind in kinds.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=undated[kind])
            write_file(file, buffer.getvalue())


def blank(axes: Axes, text: str) -> None:
    """Draw an empty panel that says why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def shade_warmup(axes: Axes, epochs: int) -> None:
    """Shade the epochs without perturbation; the reading of epoch t stands at t."""
    if epochs:
        axes.axvspan(0.5, epochs + 0.5, color="0.92", zorder=0, label="warm-up")


def seed_curves(
    axes: Axes, by_seed: pd.DataFrame, *, label: str | None, style: Mapping[str, Any], band: bool = True
) -> None:
    """Draw the mean over the columns (seeds) by the index; of several, a band of one standard deviation."""
    mean = by_seed.mean(axis=1)
    axes.plot(mean.index, mean.to_numpy(), label=label, **style)
    if band and by_seed.shape[1] > 1:
        std, x = by_seed.std(axis=1), mean.index.to_numpy(float)
        axes.fill_between(x, (mean - std).to_numpy(), (mean + std).to_numpy(), color=style["color"], alpha=0.2, lw=0)


def decades(axes: Axes, values: np.ndarray, axis: Literal["x", "y"] = "y") -> None:
    """Set a logarithmic axis for values over more than one decade; around 0 it is linear, if some are not positive.

    The axis ends at the values: a band that reaches below 0 would have no end on a logarithmic axis.
    """
    low, high = float(values.min()), float(values.max())
    if high <= 0 or high < 10 * float(values[values > 0].min()):
        return
    scaled = {"x": axes.xaxis, "y": axes.yaxis}[axis]
    if low > 0:
        axes.set(**{f"{axis}scale": "log", f"{axis}lim": (low / 2, high * 2)})
    else:
        linear = max(float(values[values > 0].min()), 1e-4 * high)
        {"x": axes.set_xscale, "y": axes.set_yscale}[axis]("symlog", linthresh=linear, linscale=1.5)
        axes.set(**{f"{axis}lim": (min(1.5 * low, -0.5 * linear), high * 2)})
        locator = mpl.ticker.SymmetricalLogLocator(base=10, linthresh=linear)
        locator.set_params(numticks=6)
        scaled.set_major_locator(locator)
    scaled.set_minor_formatter(mpl.ticker.NullFormatter())


def stability_halves(axes: Axes, *, first: str, second: str) -> None:
    """Colour what lies above 0 green, where the second is the stabler, and what lies below red and hatched.

    Call it after the curves of h(first) - h(second) are drawn: the halves reach to the ends of the axis.
    """
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=1)
    low, high = axes.get_ylim()
    axes.axhspan(0, high, color=STABLE, alpha=0.18, zorder=0, linewidth=0, label=f"{second} stabler")
    face, hatch = (mpl.colors.to_rgba(UNSTABLE, alpha) for alpha in (0.2, 0.55))
    axes.axhspan(
        low, 0, facecolor=face, edgecolor=hatch, hatch="////", zorder=0, linewidth=0, label=f"{first} stabler"
    )  # fmt: skip
    axes.set_ylim(low, high)
    axes.set_ylabel(f"h({first}) − h({second})")


def curves(
    axes: Axes,
    series: Mapping[str, pd.Series],
    *,
    xlabel: str,
    ylabel: str,
    warmup: int | None = None,
    log: bool = False,
    thin: Mapping[str, pd.Series] | None = None,
) -> None:
    """Draw one line for each series over its index; shade the warm-up epochs.

    Args:
        thin: by the same names, what is drawn thin in the same look.
    """
    thin = thin or {}
    if warmup:
        axes.axvspan(0, warmup, color="0.92", zorder=0, label="warm-up")
    for index, (name, values) in enumerate(series.items()):
        axes.plot(values.index, values.to_numpy(), label=name, **look(index))  # type: ignore[arg-type]
        if name in thin:
            style: dict[str, Any] = {**look(index), "marker": "", "linewidth": 0.5}
            axes.plot(thin[name].index, thin[name].to_numpy(), **style)
    if log and all((values > 0).all() for values in (*series.values(), *thin.values())):
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend()


def band_curves(axes: Axes, arms: Mapping[str, pd.DataFrame], *, xlabel: str, ylabel: str) -> None:
    """Draw one line for each arm over the index, the mean over its columns (seeds), with a band of one std."""
    for index, (name, by_seed) in enumerate(arms.items()):
        style = look(index)
        mean, std = by_seed.mean(axis=1), by_seed.std(axis=1)
        seeds = f" ({by_seed.shape[1]} seeds)" if by_seed.shape[1] > 1 else ""
        axes.plot(mean.index, mean.to_numpy(), label=name + seeds, **style)  # type: ignore[arg-type]
        if seeds:
            low, high = (mean - std).to_numpy(), (mean + std).to_numpy()
            axes.fill_between(mean.index.to_numpy(float), low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend()


def difference_area(axes: Axes, difference: pd.Series, *, first: str, second: str) -> None:
    """Draw first - second over epochs: green where the second is the more stable, else red and hatched."""
    x, y = difference.index.to_numpy(float), difference.to_numpy(float)
    axes.plot(x, y, color="0.2", marker="o", markersize=2.5)
    axes.axhline(0, color="0.4", linewidth=0.8)
    positive, negative = y >= 0, y <= 0
    axes.fill_between(x, y, 0, where=positive, interpolate=True, color=STABLE, alpha=0.45, label=f"{second} stabler")
    axes.fill_between(
        x,
        y,
        0,
        where=negative,
        interpolate=True,
        facecolor=UNSTABLE,
        alpha=0.45,
        hatch="////",
        label=f"{first} stabler",
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"h({first}) − h({second})")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.legend()


def bars(
    axes: Axes,
    values: pd.DataFrame,
    *,
    ylabel: str,
    errors: Mapping[str, np.ndarray] | None = None,
    numbers: str = "%.1f",
    numbers_size: float = 6,
) -> None:
    """Draw grouped bars: a group for each row, a bar for each column; hatched so as to differ in grey.

    Args:
        errors: for each column how far its error bars reach below and above the values, [2, rows]; none where NaN.
        numbers, numbers_size: format of the values above the bars, and their font's size.
    """
    hatches = ("", "///", "...", "xxx")
    width = 0.8 / len(values.columns)
    for index, column in enumerate(values.columns):
        x = np.arange(len(values)) + (index - (len(values.columns) - 1) / 2) * width
        yerr = None if errors is None else errors[column]
        drawn = axes.bar(
            x, values[column], width, label=column, color=COLORS[index], alpha=0.85, hatch=hatches[index % 4],
            edgecolor="white", yerr=yerr, error_kw={"linewidth": 0.8, "capsize": 2},
        )  # fmt: skip
        axes.bar_label(drawn, fmt=numbers, fontsize=numbers_size, padding=1)
    axes.margins(y=0.12)  # room for the numbers
    axes.set_xticks(np.arange(len(values)), values.index)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(ylabel)
    axes.legend(loc="lower center", ncols=len(values.columns), bbox_to_anchor=(0.5, 1.0))


def reaches(values: ArrayLike, intervals: ArrayLike) -> np.ndarray:
    """Compute how far intervals [n, 2] reach below and above values [n], as :func:`bars` takes it: [2, n], >= 0."""
    low, high = np.asarray(intervals, float).T
    return np.maximum([np.subtract(values, low), np.subtract(high, values)], 0)


def spectral_densities(axes: Axes, densities: Mapping[str, SpectralDensity], *, xlabel: str) -> None:
    """Draw eigenvalue densities on a logarithmic scale, where the few large eigenvalues can be seen."""
    for index, (name, density) in enumerate(densities.items()):
        density.draw(axes, name, index)
    axes.set_ylim(bottom=1e-9 * max(density.density.max() for density in densities.values()))
    axes.set_xlabel(xlabel)
    axes.legend()


def layer_heat_map(axes: Axes, table: pd.DataFrame, *, label: str, norm: mpl.colors.Normalize | None = None) -> None:
    """Draw layers down, epochs across; cividis reads the same in grey.

    Args:
        norm: the scale of the colours, by default from the least to the largest value.
    """
    sns.heatmap(
        table, ax=axes, cmap="cividis", norm=norm, cbar_kws={"label": label}, xticklabels=True, yticklabels=True
    )  # fmt: skip
    axes.tick_params(labelsize=5)
    axes.set_xlabel("epoch")
    axes.set_ylabel("")
