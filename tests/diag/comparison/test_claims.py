"""Winners of tables that ``figures`` wrote, held to their intervals."""

import json

import pandas as pd
import pytest
from click.testing import CliRunner

from figures.catalogue import choose, load_catalogue
from figures.matching import Library
from figures.numbers import Line, Reading
from figures.records import frame_of, records_of
from figures.verdicts import verdicts
from s2ap_diag.commands import main
from s2ap_diag.output.tables import to_csv
from tests.figures.rendering import run_of

(TABLE_13,) = choose(load_catalogue(), ["table13"])


def check(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments), "--json", "-"])


@pytest.fixture
def table(tmp_path):
    """Two settings of four seeds; in the first, S2AP's loss difference is lower beyond chance."""
    firsts, seconds = ([50, 52, 51, 53], [50, 52, 51, 53]), ([42, 43, 42.5, 45], [51, 51, 53, 51])
    lines = []
    for cell, *pair in zip(TABLE_13.cells[:2], firsts, seconds, strict=True):
        readings = [{"loss_difference": Reading(dict(enumerate(values)))} for values in pair]
        runs = {arm: [run_of(seed) for seed in range(4)] for arm in TABLE_13.arms}
        lines.append(Line(cell, dict(zip(TABLE_13.arms, readings, strict=True)), runs))
    found = zip(lines, verdicts(TABLE_13, lines), strict=True)
    records = [record for line, verdict in found for record in records_of(TABLE_13, line, verdict, Library([]))]
    file = tmp_path / "table13.csv"
    file.write_text(to_csv(frame_of(records)))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    return file


def edited(table, **changes):
    """Change the interval of the difference in the row that has a winner."""
    frame = pd.read_csv(table)
    cell = TABLE_13.cells[0]
    rows = frame["arm"].str.contains(" - ") & (frame["network"] == cell.network) & (frame["sparsity"] == cell.sparsity)
    assert rows.sum() == 1
    for key, value in changes.items():
        frame.loc[rows, key] = value
    frame.to_csv(table, index=False)


def test_a_winner_whose_interval_excludes_0_holds(table):
    result = check(table.parent)
    assert result.exit_code == 0
    (finding,) = json.loads(result.stdout)
    assert (finding["condition"], finding["passed"], finding["remedy"]) == ("winner", True, "")


@pytest.mark.parametrize(
    ("changes", "value", "why"),
    [
        ({"interval_high": 0.5}, "0.5]", "may be 0"),
        ({"interval_low": 0.25, "interval_high": 0.5}, "0.5]", "against it"),  # the other arm has less
        ({"interval_low": None, "interval_high": None}, None, "has no interval"),
    ],
)
def test_a_winner_that_the_interval_does_not_allow_fails(table, tmp_path_factory, changes, value, why):
    edited(table, **changes)
    result = check(tmp_path_factory.mktemp("empty"), "--tables", table.parent)
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)
    assert (finding["condition"], finding["passed"], finding["limit"]) == ("winner", False, 0)
    assert finding["value"] is None if value is None else finding["value"].endswith(value)
    assert why in finding["remedy"]
    assert "--only table13" in finding["remedy"]


def test_a_folder_without_runs_or_tables_is_refused(tmp_path, table):
    (tmp_path / "none").mkdir()
    for arguments, said in (
        ([tmp_path / "none"], "holds no run"),
        ([table.parent, "--tables", tmp_path / "none"], "holds no table"),
        ([tmp_path / "missing"], "no such folder"),
    ):
        result = check(*arguments)
        assert result.exit_code == 2
        assert said in result.output
        assert len(result.output.strip().splitlines()) == 1
