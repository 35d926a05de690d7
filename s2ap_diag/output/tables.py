"""Tables on the terminal, as wide as it is, and as files that others open."""

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich import table as rich_tables
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from s2ap_core.errors import printable

if TYPE_CHECKING:  # a table on the terminal does not wait for pandas
    import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

COMFORT = 20
"""Characters of a line of text that columns of less weight give way to."""

BETWEEN = 3
"""Characters that a column takes besides its cells: a rule and a space to each side."""

_ENDS = re.compile(
    r"(?<=\s)(?<!\d,\s)(?<!±\s)(?!±|\(\d)|(?<=/)(?!\d)|(?<=\w\w\w_)(?!\d)|(?<=[\w}]-)(?=[A-Za-z{])|(?<=,)(?=[^\s\d])"
)
"""Where a text may be broken: at spaces and what joins the words of a name, not within a number or an interval."""

NOT_CONVERGED, AT_LEAST = "* not converged", "≥ at least: what a search has found"
"""What is said below a table of the marks in it."""


@dataclass(frozen=True)
class Table:
    """A table of strings and numbers that fits where it is shown.

    Where it is too narrow for all, columns give way in the order of ``gives_way``, then text is broken, then the last
    columns give way, too; a line below names them. The first column stays, and no number is broken.

    Attributes:
        numeric: by column, whether it holds numbers alone, which stand to the right.
        gives_way: names of columns, those of least weight first.
        notes: lines below, such as what a mark in the cells means.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    gives_way: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.fitted(options.max_width)

    @property
    def width(self) -> int:
        """Characters that the whole table takes, without a text that is broken."""
        return sum(size + BETWEEN for size in self._whole()) + 1

    def _whole(self) -> list[int]:
        return [max(map(cell_len, texts)) for texts in zip(self.columns, *self.rows, strict=True)]

    def fitted(self, width: int) -> Group:
        """Lay out as many columns as ``width`` characters hold; without columns there are the lines around alone."""
        title = [Text(self.title, style="table.title")] if self.title else []
        if not self.columns:
            return Group(*title, *(Text(note, style="table.caption") for note in self.notes))
        cells, whole = list(zip(self.columns, *self.rows, strict=True)), self._whole()
        pieces = [max(cell_len(piece.rstrip()) for text in texts for piece in _ENDS.split(text)) for texts in cells]
        least = [
            max([piece, *map(cell_len, texts[1:])]) if numeric else piece
            for piece, texts, numeric in zip(pieces, cells, self.numeric, strict=True)
        ]
        comfortable = [
            small if numeric else max(small, min(size, COMFORT))
            for small, size, numeric in zip(least, whole, self.numeric, strict=True)
        ]
        shown = list(range(len(cells)))

        def too_wide(needed: Sequence[int]) -> bool:
            return sum(needed[i] + BETWEEN for i in shown) + 1 > width

        for name in self.gives_way:
            if name in self.columns and too_wide(comfortable):
                shown.remove(self.columns.index(name))
        while too_wide(least) and len(shown) > 1:
            shown.pop()
        widths = self._shared(shown, whole, least, width)
        left_out = [name for i, name in enumerate(self.columns) if i not in shown]
        remedy = f"({'--wide, or ' if _offers_wide() else ''}a wider terminal)"
        said = [f"not shown: {'; '.join(left_out)} {remedy}"] if left_out else []
        table = rich_tables.Table()
        for i in shown:
            header = Text("\n".join(fold(self.columns[i], widths[i])))
            table.add_column(
                header, justify="right" if self.numeric[i] else "left", width=widths[i], no_wrap=True, overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(Text("\n".join(fold(row[i], widths[i]))) for i in shown))
        return Group(*title, table, *(Text(note, style="table.caption") for note in (*self.notes, *said)))

    def _shared(self, shown: Sequence[int], whole: Sequence[int], least: Sequence[int], width: int) -> list[int]:
        """Give each column its least, names all that they need up to two thirds of the table, and share the rest."""
        widths = list(least)
        left = width - sum(widths[i] + BETWEEN for i in shown) - 1
        names = [i for i in shown if whole[i] <= width * 2 // 3 and not any(" " in row[i] for row in self.rows)]
        for i in names:
            given = min(whole[i] - widths[i], max(left, 0))
            widths[i] += given
            left -= given
        for _ in range(left):
            neediest = max(shown, key=lambda i: whole[i] / max(widths[i], 1))
            widths[neediest] += whole[neediest] > widths[neediest]
        return widths


def _offers_wide() -> bool:
    """Return whether the command that runs, if any, can be asked for all columns."""
    context = click.get_current_context(silent=True)
    return context is None or any(parameter.name == "wide" for parameter in context.command.params)


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    gives_way: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Table:
    """Make a table of strings and numbers, see :class:`Table`.

    Args:
        notes: of marks; those whose mark, the first character, is in a cell are shown.
    """
    numeric = tuple(
        all(row[index] is None or isinstance(row[index], int | float | Number) for row in rows)
        for index in range(len(columns))
    )
    shown = tuple(tuple(map(show, row)) for row in rows)
    said = tuple(note for note in notes if any(note[0] in cell for row in shown for cell in row))
    return Table(printable(title), tuple(columns), shown, numeric, tuple(gives_way), said)


class Number(str):
    """A number that is written with more than itself, such as a mark or an error."""


def marked(shown: str, *, converged: bool = True, at_least: bool = False) -> Number:
    """Mark a value that has not converged, and one that is a lower bound."""
    return Number("≥ " * at_least + shown + "*" * (not converged))


def show(value: Any) -> str:
    """Render a cell: four significant digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))


def fold(text: str, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` characters, between words or the parts of a name.

    >>> fold("keep0.05-fold0 [0.1, 0.2]", 12)
    ['keep0.05-', 'fold0', '[0.1, 0.2]']
    """
    lines = [""]
    for piece in _ENDS.split(text):
        if cell_len(lines[-1] + piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def show_table(table: Table, quiet: bool = False, *, wide: bool = False) -> None:
    """Print a table as wide as the terminal, 80 characters where there is none, unless nothing is to be printed.

    Args:
        wide: print all columns, however wide.
    """
    if quiet:
        return
    console = Console(width=shutil.get_terminal_size().columns, markup=False, emoji=False)
    if wide:
        console.width = max(console.width, table.width)
    console.print(table)


def show_note(note: str) -> None:
    """Print a line below tables; a terminal gets it broken between words, and names that are longer whole."""
    said = printable(note)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        said = textwrap.fill(said, width, break_long_words=False, break_on_hyphens=False)
    print(said)


def count(number: int, noun: str) -> str:
    """Write a number of things.

    >>> count(1, "batch"), count(3, "batch"), count(0, "run")
    ('1 batch', '3 batches', '0 runs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('ch') else 's'}"


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
