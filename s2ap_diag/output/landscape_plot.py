"""The loss around scores as pictures at one scale: mask bits that the steps flip on the axes, their length beside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from s2ap_diag.output import plots

LEVELS = 8
"""Lines of equal loss."""

DECADE = 10.0
"""Ratio of the largest loss to the smallest above which the scale is logarithmic: otherwise one peak hides the rest."""


def draw(records: Sequence[dict[str, Any]], names: Sequence[str], file: Path) -> None:
    """Draw the loss of each record of ``landscape --json`` in a panel of its own, all of them at one scale.

    Raises:
        InputError: if the ending of ``file`` is of no known picture format.
    """
    losses = [np.array(one["losses"], dtype=float) for one in records]
    scale = _scale(min(map(np.nanmin, losses)), max(map(np.nanmax, losses)))
    reach = {
        name: (1 + 0.5 / (len(losses[0]) // 2)) * max(max(map(abs, one["axes"][name]["flips"])) for one in records)
        for name in ("eigenvector", "z")
    }
    across = min(len(records), 3)
    down = -(-len(records) // across)
    width, height = across * plots.COLUMN + 0.5, down * (plots.COLUMN + 0.1)
    with plots.picture(file, width, height, panels=len(records), rows=down) as drawn:
        panels = drawn if len(records) > 1 else [drawn]
        for panel, one, name, of_one in zip(panels, records, names, losses, strict=True):
            image = _panel(panel, one, of_one, scale)
            panel.set_xlim(-reach["eigenvector"], reach["eigenvector"])
            panel.set_ylim(-reach["z"], reach["z"])
            panel.set_title(name.replace("$", r"\$"))
        bar = panels[0].figure.colorbar(image, ax=panels, shrink=0.8)
        bar.set_label(f"loss (BatchNorm: {records[0]['batch_norm']})")


def _scale(low: float, high: float) -> Normalize:
    """Give one scale for all panels."""
    if low > 0 and high > DECADE * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1.0)


def _panel(panel: Axes, one: dict[str, Any], loss: np.ndarray, scale: Normalize) -> Any:
    """Draw one slice: cells, lines of equal loss, both scales on each axis."""
    # Two steps may flip the same bits, where more than was asked for flip at once.
    (across, columns), (up, rows) = (
        np.unique(one["axes"][n]["flips"], return_index=True) for n in ("eigenvector", "z")
    )
    loss = loss[np.ix_(rows, columns)]
    panel.set_facecolor("0.9")  # what no step reaches
    panel.grid(visible=False)
    image = panel.pcolormesh(across, up, loss, cmap="cividis", norm=scale, shading="nearest")
    levels = np.asarray(scale.inverse(np.linspace(0, 1, LEVELS + 2)[1:-1]))
    if np.nanmin(loss) < levels[-1] and np.nanmax(loss) > levels[0]:
        panel.contour(across, up, loss, levels=levels, colors="white", linewidths=0.6)
    panel.plot(0, 0, marker="+", color="white", markersize=7)
    panel.set_xlabel("mask bits flipped, top live eigenvector")
    panel.set_ylabel("mask bits flipped, z")
    for axis, name in ((panel.xaxis, "eigenvector"), (panel.yaxis, "z")):
        places, rho = (np.array(one["axes"][name][what], dtype=float) for what in ("flips", "rho"))
        shown = [0, len(places) // 2, len(places) - 1]
        axis.set_ticks(places[shown], [f"{abs(places[i]):g}" for i in shown])
        _lengths(panel, name, places, rho, shown)
    return image


def _lengths(panel: Axes, name: str, places: np.ndarray, rho: np.ndarray, shown: Sequence[int]) -> None:
    """Write the relative length of a step on the other side of an axis."""
    labels = ["–" if np.isnan(rho[i]) else f"{abs(rho[i]):.2g}" for i in shown]
    if name == "eigenvector":
        other = panel.secondary_xaxis("top")
        other.set_xticks(places[shown], labels)
        other.set_xlabel("ρ = |step| / |s|", fontsize=7)
    else:
        other = panel.secondary_yaxis("right")
        other.set_yticks(places[shown], labels)
        other.set_ylabel("ρ", fontsize=7)
