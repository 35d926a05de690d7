"""The sheet that pictures are drawn on: its fonts, grid and vector text."""

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib import pyplot
from matplotlib.axes import Axes

from s2ap_diag.display.style import COLUMN

STYLE: dict[Any, Any] = {
    **sns.axes_style("whitegrid", {"axes.edgecolor": "0.3", "grid.color": "0.9"}),
    "figure.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


ROW = 0.11  # inches of a layer's bar


def drawn(draw: Callable[[Axes], None], rows: int) -> Axes:
    """Draw on a figure of one panel in this look: pyplot's, so that a notebook shows it.

    Args:
        rows: how many bars it has to have room for.
    """
    with mpl.rc_context(STYLE):
        axes = pyplot.figure(figsize=(COLUMN, max(2.4, ROW * rows)), layout="constrained").add_subplot()
        draw(axes)
    return axes
