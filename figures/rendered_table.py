"""A rendered table, and how it is written: CSV, Markdown and LaTeX, with every string from outside made harmless."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "ρ": r"$\rho$",
    "γ": r"$\gamma$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "\n": " ",
}
TYPEFACE = "–—" + "".join(map(chr, range(0xC0, 0x100)))
"""Characters beyond ASCII that LaTeX sets as they are."""

PAGE = 60
"""Rows that fit a page."""


@dataclass(frozen=True)
class Text:
    """A cell as it is shown; ``mark`` follows it, raised."""

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class RenderedTable:
    """A table as it is shown, and its numbers in long form.

    Attributes:
        groups: heads of neighbouring columns and the columns below; a head may be empty.
        rows: as many cells as there are columns.
        caption: sentences.
        records: one row for each number.
    """

    id: str
    heading: str
    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[Sequence[Text]]
    caption: Sequence[str]
    records: pd.DataFrame
    notes: Sequence[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [column for _, columns in self.groups for column in columns]


def to_markdown(table: RenderedTable) -> str:
    """Write the caption and a table with one line of heads: ``paper: Orig.``."""
    heads = [f"{group}: {column}" if group else column for group, columns in table.groups for column in columns]
    lines = [heads, ["---"] * len(heads), *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    lines[0] = [escape_markdown(head) for head in heads]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    caption = escape_markdown(" ".join([f"{table.heading}.", *table.caption]))
    return f"{caption}\n\n{body}\n"


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!$&])", r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Text) -> str:
    text = escape_markdown(cell.text)
    if cell.bold:
        text = f"**{text}**"
    return f"{text}{escape_markdown(cell.mark)}"


def to_latex(table: RenderedTable) -> str:
    r"""Render LaTeX to be put in by ``\input``, for booktabs and graphicx: a ``table*`` as narrow as the text.

    A table of more than `PAGE` rows is a ``longtable``, for a document of one column.
    """
    heads, rules, start = [], [], 1
    for group, below in table.groups:
        heads.append(rf"\multicolumn{{{len(below)}}}{{c}}{{{escape_latex(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + len(below) - 1}}}")
        start += len(below)
    first_numbers = len(table.groups[0][1])
    layout = "l" * first_numbers + "r" * (len(table.columns) - first_numbers)
    head = [
        r"\toprule",
        " & ".join(heads) + r" \\",
        " ".join(rules),
        " & ".join(escape_latex(column) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    body = [_latex_row(row) for row in table.rows]
    sentences = (f"{table.heading.partition(': ')[2]}.", *table.caption)
    caption = rf"\caption{{{' '.join(escape_latex(sentence) for sentence in sentences)}}}\label{{tab:{table.id}}}"
    if len(table.rows) > PAGE:
        return _joined(
            "% needs booktabs and longtable",
            rf"{{\scriptsize\begin{{longtable}}{{{layout}}}",
            rf"{caption} \\",
            *head,
            r"\endhead",
            *body,
            r"\bottomrule",
            r"\end{longtable}}",
        )
    return _joined(
        "% needs booktabs and graphicx",
        r"\begin{table*}",
        r"\centering",
        caption,
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{layout}}}",
        *head,
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    )


def _joined(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Escape text so that LaTeX sets it as it is, and says the number of a character that its fonts lack."""
    return "".join(_latex_character(character) for character in text)


def _latex_character(character: str) -> str:
    if character in LATEX:
        return LATEX[character]
    return character if " " <= character <= "~" or character in TYPEFACE else f"[U+{ord(character):04X}]"


def _latex_row(row: Sequence[Text]) -> str:
    r"""Write a row; ``\\`` would take a bracket or star at the beginning of the next for its own."""
    cells = " & ".join(_latex_cell(cell) for cell in row)
    return ("{}" if cells.startswith(("[", "*")) else "") + cells + r" \\"


def _latex_cell(cell: Text) -> str:
    text = escape_latex(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    return text + "".join("$^*$" if mark == "*" else escape_latex(mark) for mark in cell.mark)
