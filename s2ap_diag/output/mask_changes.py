"""Drawings of how much masks change over a search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from s2ap_diag.output import plots


def draw(
    arms: Mapping[str, Mapping[str, Mapping[int, float]]],
    differences: Sequence[Mapping[str, Any]],
    file: Path,
    measure: str,
) -> None:
    """Draw the distances over the epochs, with a band over seeds; for two arms their difference beside them.

    Args:
        arms: distances by arm, run and epoch.
        differences: ``epoch`` and ``difference`` of two arms, or empty.
        measure: what the distances are called.
    """
    panels = 2 if differences else 1
    tables = {arm: pd.DataFrame(_series(runs)).sort_index() for arm, runs in arms.items()}
    with plots.picture(file, panels * plots.COLUMN, 2.4, panels) as axes:
        plots.band_curves(axes[0] if differences else axes, tables, xlabel="epoch", ylabel=measure)
        if differences:
            difference = pd.Series({row["epoch"]: row["difference"] for row in differences})
            first, second = arms
            plots.difference_area(axes[1], difference, first=first, second=second)


def _series(runs: Mapping[str, Mapping[int, float]]) -> dict[str, pd.Series]:
    return {run: pd.Series(dict(distances), dtype=float) for run, distances in runs.items()}


def draw_layers(folders: Sequence[tuple[str, Mapping[int, Mapping[str, float]]]], file: Path) -> None:
    """Draw a heat map of h, layers down and epochs across, for each folder.

    Args:
        folders: title of each, and h by epoch and layer.
    """
    tables = [(title, pd.DataFrame(dict(epochs))) for title, epochs in folders]
    height = max(2.4, 0.13 * len(tables[0][1]) + 0.8)
    with plots.picture(file, len(tables) * plots.COLUMN, height, len(tables)) as axes:
        for (title, table), panel in zip(tables, axes if len(tables) > 1 else [axes], strict=True):
            plots.layer_heat_map(panel, table, label="h")
            panel.set_title(title)
