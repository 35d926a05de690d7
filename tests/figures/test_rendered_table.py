"""How tables are written, and when an arm is called better."""

import io
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker
from scipy.stats import ttest_rel

from figures.catalogue import choose, load_catalogue
from figures.numbers import Line, Reading, gap
from figures.rendered_table import RenderedTable, Text, to_latex, to_markdown
from figures.verdicts import verdicts
from s2ap_diag.output.tables import to_csv
from tests.figures.rendering import run_of

(TABLE_13,) = choose(load_catalogue(), ["table13"])


def reading(*values):
    return Reading(dict(enumerate(values)))


def test_better_is_what_the_paired_t_test_says_after_holm_over_the_rows():
    """Rows of four seeds, against scipy's t-test; the second would be better alone and is not among three."""
    firsts = np.array([[50.0, 52, 51, 53]] * 3)
    seconds = firsts - np.array([[8.0, 9, 8.5, 8], [1.0, 2.5, 3.2, 1.1], [1, -1, 2, -2]])
    assert TABLE_13.metrics[-1] == "loss_difference"
    rows = [
        Line(
            TABLE_13.cells[0],
            {arm: {"loss_difference": reading(*v)} for arm, v in zip(TABLE_13.arms, pair, strict=True)},
            {arm: [run_of(seed) for seed in range(len(firsts[0]))] for arm in TABLE_13.arms},
        )
        for pair in zip(firsts, seconds, strict=True)
    ]
    p = [ttest_rel(b, a).pvalue for a, b in zip(firsts, seconds, strict=True)]
    assert p[1] < 0.05 < 2 * p[1]
    found = verdicts(TABLE_13, rows)
    assert [v.better for v in found] == ["s2ap", None, None]  # the lower loss difference
    assert [v.adjusted_p for v in found] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert verdicts(TABLE_13, rows[1:2])[0].better == "s2ap"


def test_fewer_than_three_seeds_make_no_arm_better():
    readings = {"orig": {"loss_difference": reading(9, 9)}, "s2ap": {"loss_difference": reading(1, 1)}}
    (found,) = verdicts(TABLE_13, [Line(TABLE_13.cells[0], readings, {"orig": [run_of(0), run_of(1)]})])
    assert (found.difference.mean, found.adjusted_p, found.better) == (-8, None, None)


def test_seeds_of_one_fold_are_no_further_units():
    """Six seeds on two folds: a t-test of the seeds would find 0.005, of the folds there is none."""
    firsts, seconds = [1.0] * 6, [0.5, 0.6, 0.4, 0.55, 0.45, 0.58]
    readings = {"orig": {"loss_difference": reading(*firsts)}, "s2ap": {"loss_difference": reading(*seconds)}}
    runs = {"orig": [run_of(seed, seed % 2) for seed in range(6)]}
    (found,) = verdicts(TABLE_13, [Line(TABLE_13.cells[0], readings, runs)])
    assert found.better is None
    by_fold = [np.mean([seconds[seed] - 1 for seed in range(fold, 6, 2)]) for fold in (0, 1)]
    assert found.difference.by_unit == pytest.approx(by_fold)


def test_readings_have_the_spread_of_a_sample():
    assert reading(1, 2, 6).mean == 3
    assert reading(1, 2, 6).std == pytest.approx(7**0.5)
    assert math.isnan(reading(1).std)


def test_gap_of_a_printed_row():
    assert gap(81.26, 48.86, 81.36, 50.10) == pytest.approx(1.14)  # Table 1, first row


@pytest.fixture
def table():
    hostile = r"50%_a&b|c*d\e{f}^~$g$ <i>[x](y)"
    return RenderedTable(
        id="table1",
        heading="Table 1: results",
        groups=[("", ["Network"]), ("measured", ["Orig.", "S2AP"])],
        rows=[
            [Text(hostile), Text("1.0 ± 0.5", bold=True), Text("0.5", mark="†")],
            [Text("ViT"), Text("−1"), Text("")],
        ],
        caption=["95 % of | it."],
        records=pd.DataFrame({"data": ["=1+1", "@x", "+1", "-a", "plain"], "value": [-1.5, 2, 3, 4, 5]}),
    )


def test_csv_has_no_formulas_and_whole_numbers(table):
    text = to_csv(table.records)
    back = pd.read_csv(io.StringIO(text))
    assert list(back["data"]) == ["'=1+1", "'@x", "'+1", "'-a", "plain"]
    assert list(back["value"]) == [-1.5, 2, 3, 4, 5]


def test_markdown_rows_keep_their_columns(table):
    *_, heads, rule, first, second = to_markdown(table).strip().splitlines()
    unescaped = re.compile(r"(?<!\\)\|")
    assert {len(unescaped.findall(line)) for line in (heads, rule, first, second)} == {4}
    assert "measured: S2AP" in heads
    assert "**1.0 ± 0.5**" in first
    assert "0.5†" in first
    assert r"\[x\](y)" in first
    assert r"\<i\>" in first


def set_in_latex(texts, folder):
    """Compile tables as a document where there is a LaTeX, else parse them."""
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs,longtable,graphicx}"
    body = "\n".join([rf"\documentclass{{article}}{packages}\begin{{document}}", *texts, r"\end{document}"])
    if latex := shutil.which("pdflatex"):
        (folder / "all.tex").write_text(body)
        call = [latex, "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        return
    known = set("–—") | {chr(code) for code in range(0xC0, 0x100)}  # the others pdflatex has no letter for
    assert {character for character in body if not character.isascii()} <= known
    nodes, _, _ = LatexWalker(body, tolerant_parsing=False).get_latex_nodes()
    (document,) = [node for node in nodes if node.isNodeType(LatexEnvironmentNode)]
    environments = [node for node in document.nodelist if node.isNodeType(LatexEnvironmentNode)]
    assert environments or "longtable" in body


def test_latex_compiles(table, rendered, tmp_path):
    """All tables of runs, one over pages, and names that mean something to LaTeX or that it has no letters for."""
    evil = [["[x] 1", "*y", "≠ ≥ λ"], ["ß–é", "漢字 \u200b", "a\tb"], [r"\input{x}", "%", "#1 ^^M"]]
    hostile = replace(table, rows=[*table.rows, *([Text(cell) for cell in row] for row in evil)])
    many = replace(table, id="many", rows=list(table.rows) * 40)
    written = [file.read_text() for file in sorted(rendered.glob("*.tex"))]
    set_in_latex([*written, to_latex(hostile), to_latex(many)], tmp_path)
    assert "\n{}[x] 1 & *y & " in to_latex(hostile)


def test_latex_is_balanced_and_escaped(table):
    text = to_latex(table)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    unescaped = re.compile(r"(?<!\\)&")
    assert [len(unescaped.findall(row)) for row in rows] == [1, 2, 2, 2]
    assert r"\textbf{1.0 $\pm$ 0.5}" in text
    assert r"0.5$^\dagger$" in text
    assert r"50\%\_a\&b|c*d\textbackslash{}e\{f\}\textasciicircum{}\textasciitilde{}\$g\$" in text
    assert "tabular}{lrr}" in text
    without = re.sub(r"\\[{}]", "", text)
    assert without.count("{") == without.count("}")
    assert {environment: text.count(rf"\begin{{{environment}}}") for environment in ("table*", "tabular")} == {
        "table*": 1,
        "tabular": 1,
    }


def test_a_table_longer_than_a_page_breaks_over_pages(table):
    many = RenderedTable(table.id, table.heading, table.groups, list(table.rows) * 40, table.caption, table.records)
    text = to_latex(many)
    assert r"\begin{longtable}{lrr}" in text
    assert text.index(r"\midrule") < text.index(r"\endhead") < text.index("ViT")
    assert "table*" not in text
