"""Tables on the terminal, and as files that others open."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # a table on the terminal does not wait for pandas
    import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Make a table of strings and numbers, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(show, row))
    return table


def show(value: Any) -> str:
    """Render a cell: four significant digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def show_table(table: Table, quiet: bool = False) -> None:
    """Print a table unless nothing is to be printed."""
    if not quiet:
        Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


def accuracies(results: Mapping[str, Any], stage: str) -> list[float | None]:
    """Read clean and robust accuracy of a stage in percent from a run's results, None where it was not evaluated."""
    summary = results.get(f"evaluate-{stage}", {})
    return [100 * summary[key] if key in summary else None for key in ("clean_accuracy", "robust_accuracy")]


def to_csv(table: "pd.DataFrame") -> str:
    """Render CSV in which no text is a formula: one that a spreadsheet would run gets an apostrophe."""
    return str(table.map(harmless).rename(columns=harmless).to_csv(index=False, lineterminator="\n"))


def harmless(value: object) -> object:
    """Give a text that a spreadsheet does not take for a formula; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
