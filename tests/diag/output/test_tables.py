"""Tables on the terminal: what is shown at a width is whole, and what is not shown is named."""

import io
import random

import pytest
from rich.console import Console

from s2ap_diag.output.tables import AT_LEAST, NOT_CONVERGED, make_table, marked, show_table

NAMES = ("svhn-resnet18-magnitude-orig-90-keep0.1-fold0-s0-51471c4a", "wrn_28_4/ckpt/prune-epoch-001", "a b c")


def printed(table, width):
    """The lines that a terminal of this width shows."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()


def any_table(rng):
    """A table of one column of names and up to nine of numbers, intervals and texts."""
    kinds = [rng.choice(("number", "share", "interval", "text")) for _ in range(rng.randrange(1, 10))]
    make = {
        "number": lambda: rng.choice((rng.uniform(-1, 1) * 10 ** rng.randrange(-8, 9), rng.randrange(10**7), None)),
        "share": lambda: f"{rng.randrange(10**6)} ({rng.random():.1%})",
        "interval": lambda: f"{rng.uniform(0, 99):.1f} [{rng.uniform(-9, 9):.1f}, {rng.uniform(9, 99):.1f}]",
        "text": lambda: " ".join(rng.choice(("of", "three", "seeds,", "at", "8/255")) for _ in range(rng.randrange(9))),
    }
    columns = ["name", *(f"{kind} {i}" for i, kind in enumerate(kinds))]
    rows = [[rng.choice(NAMES), *(make[kind]() for kind in kinds)] for _ in range(rng.randrange(1, 5))]
    return columns, rows, make_table("what it is", columns, rows, gives_way=rng.sample(columns[1:], len(kinds) // 2))


@pytest.mark.parametrize("seed", range(40))
def test_what_is_shown_is_whole_and_the_rest_is_named(seed):
    rng = random.Random(seed)
    columns, rows, table = any_table(rng)
    width = rng.randrange(40, 130)
    lines = printed(table, width)
    assert max(map(len, lines)) <= width
    (left_out,) = [line for line in " ".join(lines).split("not shown: ")[1:]] or [""]
    hidden = [name for name in columns if name in " ".join(left_out.split())]
    assert "name" not in hidden
    text = "\n".join(lines)
    for position, name in enumerate(columns):
        cells = {row[position] for row in rows}
        if name in hidden or name == "name":
            continue
        for cell in cells:
            if isinstance(cell, float):
                assert f" {cell:.4g} " in text, (cell, text)
            elif isinstance(cell, int) or (cell and "(" in cell):
                assert f" {cell} " in text, (cell, text)
            elif cell and "[" in cell:
                assert f" [{cell.split('[')[1]} " in text, (cell, text)
    everything = printed(table, 1000)
    assert not any("not shown" in line for line in everything)
    for row in rows:
        assert any(all(str(cell) in line for cell in row if isinstance(cell, str)) for line in everything)


def test_columns_give_way_in_their_order_and_only_as_many_as_have_to():
    columns = ["run", "first", "second", "third"]
    table = make_table("", columns, [["a", 1.234, 5.678, 9.012]], gives_way=["second", "first"])
    whole = max(map(len, printed(table, 200)[1:4]))

    def shown(width):
        text, _, left_out = "\n".join(printed(table, width)).partition("not shown")
        assert all((name in text) != (name in left_out) for name in columns)
        return [name for name in columns if name in text]

    assert shown(whole) == columns
    assert shown(whole - 1) == ["run", "first", "third"]
    assert shown(15) == ["run", "third"]


def test_wide_shows_all_in_one_line_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = make_table("", ["name", *map(str, range(30))], [[NAMES[0], *([1.2345] * 30)]])
    show_table(table)
    assert "not shown" in capsys.readouterr().out
    show_table(table, wide=True)
    wide = capsys.readouterr().out
    assert "not shown" not in wide
    assert any(NAMES[0] in line and line.count("1.234") == 30 for line in wide.splitlines())


def test_a_table_without_rows_has_its_heads():
    lines = printed(make_table("0 findings", ["finding", "what"], []), 80)
    assert lines[0] == "0 findings"
    assert "finding" in lines[2]


def test_marks_are_explained_where_they_occur():
    def notes(*cells):
        lines = printed(make_table("", ["x"], [[cell] for cell in cells], notes=(NOT_CONVERGED, AT_LEAST)), 80)
        return [line.strip() for line in lines if line.strip() in (NOT_CONVERGED, AT_LEAST)]

    assert notes(marked("1.2"), 3.4) == []
    assert notes(marked("1.2", converged=False)) == [NOT_CONVERGED]
    assert notes(marked("1.2", at_least=True), marked("0.1", converged=False)) == [NOT_CONVERGED, AT_LEAST]


def test_a_table_without_columns_is_its_title(capsys):
    show_table(make_table("90 done, 0 running", [], []))
    assert capsys.readouterr().out == "90 done, 0 running\n"
