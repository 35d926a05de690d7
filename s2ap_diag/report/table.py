"""The table of all runs: its columns, of which the page shows a choice, its filters, and what is ranked with what."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from s2ap_diag.comparison.cost import Cost
from s2ap_diag.report.charts import show
from s2ap_diag.report.measured import STAGES
from s2ap_diag.report.view import Accuracy, RunView

MOST_OPTIONS = 40
"""Values of a setting beyond which a list to choose from helps nobody; the text filter finds them."""

INCIDENTAL = ("title", "compute", "data.root", "pretrain.checkpoint")
"""Settings that no one filters by."""

OWN_COLUMNS = (
    "data.name", "network.name", "method.name", "minimizer.gamma", "method.keep", "method.flops_reduction", "seed",
    "data.options.fold", "evaluation.attack", "evaluation.norm", "evaluation.eps", "evaluation.n",
)  # fmt: skip
"""Settings that a column says already."""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        value: what it is sorted by, None where there is nothing.
        rank: what its value may be ranked with; empty where it may be with all.
        tip: more of it, in words.
    """

    text: str
    value: float | None = None
    rank: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        over: what its heading stands under, empty for nothing.
        numeric: whether it is sorted by number.
        cells: one for each run.
        hidden: whether the page leaves it out at first.
        ranks: whether its values must not all be ranked together.
    """

    heading: str
    over: str
    numeric: bool
    cells: Sequence[Cell]
    hidden: bool
    ranks: bool


@dataclass(frozen=True)
class Filter:
    """A setting to choose runs by: its values, and for each run the number of its value."""

    name: str
    values: Sequence[str]
    chosen: Sequence[int]


@dataclass(frozen=True)
class Table:
    """The table of all runs.

    Attributes:
        common: what all runs have in common, in words.
    """

    columns: Sequence[Column]
    filters: Sequence[Filter]
    common: Sequence[tuple[str, str]]


EMPTY = Cell("–")


def make_table(views: Sequence[RunView]) -> Table:
    """Lay out all columns that have a value; those in which all runs agree are left out at first, and said above."""
    several_data = len({view.data for view in views}) > 1
    rho = common_rho(views)
    columns = [
        _words("data", views, lambda v: v.data),
        _words("network", views, lambda v: v.network),
        _words("method", views, lambda v: v.method or "–"),
        _words("arm", views, lambda v: v.arm or "–"),
        _number("γ", views, lambda v: v.gamma),
        _column("sparsity", views, lambda v: Cell(v.reduction, v.removed), numeric=True),
        _column("seed", views, lambda v: Cell(str(v.seed), v.seed), numeric=True),
        _column("fold", views, lambda v: EMPTY if v.fold is None else Cell(str(v.fold), v.fold), numeric=True),
        _words("attack", views, lambda v: v.threat["attack"]),
        _words("norm", views, lambda v: v.threat["norm"]),
        _words("eps", views, lambda v: v.threat["eps"]),
        _column("n", views, lambda v: Cell(v.threat["n"], _float(v.threat["n"])), numeric=True),
        *_accuracies(views, several_data),
        *(_lambda_max(which, views) for which in ("λ_max", "live λ_max")),
        _number(f"ΔL{f' at ρ = {show(rho)}' if rho is not None else ''}", views, lambda v: v.rises.get(rho or 0.0)),
        _number("h", views, lambda v: v.h),
        _share("density, %", views, lambda cost: cost.density),
        _share("FLOPs kept, %", views, lambda cost: cost.flops),
        _number("ms per image", views, lambda v: v.latency),
        _column("seconds", views, lambda v: Cell(f"{v.seconds:.0f}", v.seconds), numeric=True, hidden=False),
        *_settings(views),
    ]
    shown = [column for column in columns if any(cell.text != "–" for cell in column.cells)]
    common = [
        (column.heading.removesuffix(", %"), column.cells[0].text + (" %" if column.heading.endswith("%") else ""))
        for column in shown
        if column.hidden and not _varies(column.cells)
    ]
    return Table(shown, list(_filters(views)), common)


def common_rho(views: Sequence[RunView]) -> float | None:
    """Find the largest rho that all runs with a loss difference have, so that a column compares like with like."""
    measured = [set(v.rises) for v in views if v.rises]
    return max(set.intersection(*measured), default=None) if measured else None


def _column(
    heading: str, views: Sequence[RunView], cell: Callable[[RunView], Cell], *, numeric: bool, over: str = "",
    hidden: bool | None = None,
) -> Column:  # fmt: skip
    """Make a column; by default it is hidden where all of several runs agree."""
    cells = [cell(view) for view in views]
    ranks = len({cell.rank for cell in cells if cell.value is not None}) > 1
    agree = len(cells) > 1 and not _varies(cells)
    return Column(heading, over, numeric, cells, agree if hidden is None else hidden, ranks)


def _varies(cells: Sequence[Cell]) -> bool:
    return len({cell.text for cell in cells}) > 1


def _words(heading: str, views: Sequence[RunView], text: Callable[[RunView], str]) -> Column:
    return _column(heading, views, lambda view: Cell(text(view)), numeric=False)


def _number(heading: str, views: Sequence[RunView], value: Callable[[RunView], float | None]) -> Column:
    return _column(heading, views, lambda view: Cell(show(value(view)), value(view)), numeric=True, hidden=False)


def _share(heading: str, views: Sequence[RunView], read: Callable[[Cost], float | None]) -> Column:
    def cell(view: RunView) -> Cell:
        share = None if view.cost is None else read(view.cost)
        return EMPTY if share is None else Cell(f"{100 * share:.3g}", 100 * share)

    return _column(heading, views, cell, numeric=True, hidden=True)


def _accuracies(views: Sequence[RunView], several_data: bool) -> Iterator[Column]:
    for stage, name in STAGES.items():
        for index, kind in enumerate(("clean", "robust")):

            def cell(view: RunView, stage: str = stage, index: int = index) -> Cell:
                accuracy = view.accuracies.get(stage, (None, None))[index]
                return EMPTY if accuracy is None else _accuracy(accuracy, view.data if several_data else "")

            yield _column(f"{kind}, %", views, cell, numeric=True, over=name, hidden=stage == "pretrain")


def _accuracy(accuracy: Accuracy, data: str) -> Cell:
    low, high = accuracy.interval
    tip = f"95 % Wilson interval {low:.1f}–{high:.1f} %, {accuracy.under}"
    return Cell(f"{accuracy.percent:.1f}", accuracy.percent, ", ".join(filter(None, (data, accuracy.under))), tip)


def _lambda_max(which: str, views: Sequence[RunView]) -> Column:
    """Make the column of a lambda_max: at the selected scores, or, where no run was measured there, in the search."""
    measured = any(view.measured for view in views)
    source = "of the selected scores" if measured else "mean over the readings of the last epoch"
    readings = {id(view): reading for view in views if (reading := view.measured if measured else view.tracked)}
    modes = {reading.mode for reading in readings.values()}

    def cell(view: RunView) -> Cell:
        reading = readings.get(id(view))
        value = None if reading is None else reading.value if which == "λ_max" else reading.live
        if reading is None or value is None:
            return EMPTY
        under = f"{source}, BatchNorm {reading.mode}"
        return Cell(show(value) if len(modes) == 1 else f"{show(value)} {reading.mode}", value, under, under)

    heading = f"{which}, BatchNorm {min(modes)}" if len(modes) == 1 and which == "λ_max" else which
    return _column(heading, views, cell, numeric=True, hidden=False)


def _settings(views: Sequence[RunView]) -> Iterator[Column]:
    """Make a hidden column of every other setting in which runs differ."""
    for key in varying(views):
        if key not in OWN_COLUMNS:
            numbers = [_float(view.settings.get(key, "")) for view in views]
            numeric = any(number is not None for number in numbers)
            cells = [Cell(view.settings.get(key, "–"), number) for view, number in zip(views, numbers, strict=True)]
            yield Column(key, "", numeric, cells, True, False)


def varying(views: Sequence[RunView]) -> list[str]:
    """Name the settings that have several values, runs aside that do not read them."""
    keys = dict.fromkeys(key for view in views for key in view.settings if not key.startswith(INCIDENTAL))
    return [key for key in keys if len({view.settings.get(key) for view in views} - {None}) > 1]


def _filters(views: Sequence[RunView]) -> Iterator[Filter]:
    named = {"arm": [view.arm or "–" for view in views]} | {
        key: [view.settings.get(key, "–") for view in views] for key in varying(views)
    }
    for name, texts in named.items():
        values = sorted(dict.fromkeys(texts), key=lambda text: (_float(text) is None, _float(text) or 0.0, text))
        if 1 < len(values) <= MOST_OPTIONS:
            yield Filter(name, values, [values.index(text) for text in texts])


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
