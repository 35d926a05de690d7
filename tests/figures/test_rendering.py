"""Thirty tables and figures from the command line: what is written, from what, and under which names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from figures.catalogue import choose, load_catalogue
from figures.reference import load
from tests.figures.rendering import HYDRA, IDS, cells, clone, correct, invoke, on, one, render


def test_all_thirty_are_written(rendered):
    tables, figures = IDS[:13], IDS[13:]
    kinds = [((*tables, "claims"), ("csv", "md", "tex")), (figures, ("png", "pdf", "csv"))]
    expected = {f"{i}.{ending}" for ids, endings in kinds for i in ids for ending in endings}
    assert {file.name for file in rendered.iterdir()} == expected | {"README.md", "results.csv"}
    page = (rendered / "README.md").read_text()
    for number in range(1, 14):
        assert f"\n## Table {number}\n" in page
    for figure in figures:
        assert f"]({figure}.png)" in page
        assert (rendered / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(rendered / f"{figure}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # not a blank sheet
    assert not any("Traceback" in line for line in page.splitlines())


def test_results_of_the_runs_used(made, rendered):
    row = one(rendered / "results.csv", method="harp", arm="s2ap", seed=1, stage="finetune", metric="robust_accuracy")
    expected = 100 * correct(made, "harp", "s2ap", 1, "finetune", "robust").mean()
    assert float(row["value"]) == pytest.approx(expected)
    assert (row["data"], row["network"], row["gamma"]) == ("cifar10", "resnet18", "0.001")
    assert len({r["run"] for r in cells(rendered / "results.csv")}) == 8
    assert one(rendered / "results.csv", method="harp", arm="orig", seed=1, metric="hours")["gamma"] == ""
    commit = json.loads((made / "harp-orig-0" / "environment.json").read_text())["commit"]
    assert str(commit) in (rendered / "README.md").read_text()


def test_no_two_results_share_a_key(runs, tmp_path):
    """Clean runs beside adversarial ones, and a run in halves, an evaluation in each, of which neither gives hours."""
    for arm in ("orig", "s2ap"):
        clone(runs / f"hydra-{arm}-0", f"clean-{arm}", objective=('name = "trades"', 'name = "clean"'))
    both = '    "prune",\n    "finetune",\n'
    for stage in ("prune", "finetune"):
        clone(runs / "harp-orig-0", f"half-{stage}", stages=(both, f'    "{stage}",\n'))
    shutil.rmtree(runs / "harp-orig-0")
    render(runs, tmp_path / "out", "table1", "table5", "table7", "table10", "table13", "fig8")
    rows = cells(tmp_path / "out" / "results.csv")
    keys = [tuple(value for name, value in row.items() if name not in ("run", "value")) for row in rows]
    assert len(keys) == len(set(keys))
    of_hydra = [row for row in rows if row["method"] == "hydra" and row["seed"] == "0" and row["metric"] == "hours"]
    assert {row["objective"] for row in of_hydra} == {"trades"}  # Table 7 asks for no clean ones
    wanted = {"method": "hydra", "arm": "orig", "seed": 0, "stage": "finetune", "metric": "clean_accuracy"}
    trades, clean = (one(tmp_path / "out" / "results.csv", **wanted, objective=name) for name in ("trades", "clean"))
    assert (trades["beta"], trades["train_eps"], trades["train_step"], trades["train_steps"]) == (
        "6.0", "32/255", "16/255", "2"
    )  # fmt: skip
    assert [clean[name] for name in ("beta", "train_eps", "train_step", "train_steps")] == [""] * 4
    assert (trades["attack"], trades["norm"], trades["eps"], trades["n"]) == ("pgd-50", "Linf", "32/255", "30")
    of_harp = [row for row in rows if (row["method"], row["arm"], row["seed"]) == ("harp", "orig", "0")]
    assert {row["metric"] for row in of_harp} == {"clean_accuracy", "robust_accuracy"}


def test_what_asks_for_the_same_is_rendered_once():
    assert [entry.id for entry in choose(load_catalogue(), [])] == IDS
    left_out = set(IDS) - {entry.id for entry in choose(load_catalogue("digits"), [])}
    # SVHN's twins of CIFAR-10: Table 2, ResNet-18 with HYDRA, VGG-16 and WRN-28-4 with both methods.
    assert left_out == {"table2", "fig10", "fig13", "fig14", "fig16", "fig17"}
    figure7 = next(entry for entry in load_catalogue("digits") if entry.id == "fig7")
    assert len(figure7.cells) == 8  # HARP on SVHN has become HARP on CIFAR-10


def test_names_from_outside_do_no_harm(runs, tmp_path):
    name = "=cmd|'x'!A1_$%&<b>"
    folder = runs / "=evil"
    on(runs, name.replace("/", "")).rename(folder)
    render(runs, tmp_path / "out", "table1", "fig7", dataset=name)
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy", data=f"'{name}")
    assert row["seeds"] == "1"
    latex = (tmp_path / "out" / "table1.tex").read_text()
    assert r"\_\$\%\&\textless{}b\textgreater{}" in latex
    assert name not in latex
    page = (tmp_path / "out" / "README.md").read_text()
    outside_code = page.split("```")[2]
    assert "<b>" not in outside_code.replace(r"\<b\>", "")
    assert {file.suffix for file in (tmp_path / "out").iterdir()} <= {".csv", ".md", ".tex", ".png", ".pdf"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "table1", "table99"], ["table99", "fig17", "table13"]),
        (["--runs", "nowhere"], ["nowhere"]),
        (["--batch-norm", "both"], ["batch-norm"]),
        ([], ["--out"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(made, tmp_path, arguments, words):
    out = ["--out", tmp_path / "out"] if arguments else []
    result = invoke("--runs", made, *out, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_only_takes_several_ids_and_may_be_repeated(made, tmp_path):
    result = invoke("--only", "table6", "table3", "--runs", made, "--only", "table12", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {file.stem for file in tmp_path.glob("*.tex")} == {"table3", "table6", "table12"}


def test_the_catalogue_asks_for_what_the_paper_prints():
    """Each printed number of a setting and arm has a cell, and no cell is without a printed number."""
    for entry in load_catalogue():
        if not entry.is_table or entry.id in ("table7",):
            continue
        numbers = load(entry.id)
        metrics = {*entry.metrics, *(["gap"] if entry.gap else [])}
        assert metrics == set(numbers["metric"])
        settings = numbers[["dataset", "network", "method", "sparsity", "flops_reduction"]].drop_duplicates()
        assert len(settings) == len(entry.cells), entry.id
        assert set(numbers["minimizer"].dropna()) == set(entry.arms) - {"dense"}
        data = {"cifar10c": "cifar10"}
        assert {data.get(d, d) for d in settings["dataset"]} == {cell.data for cell in entry.cells}


def test_the_same_runs_give_the_same_files(made, rendered, tmp_path):
    render(made, tmp_path, "table1", "fig8")
    for name in ("table1.csv", "table1.tex", "fig8.png", "fig8.pdf"):
        assert (tmp_path / name).read_bytes() == (rendered / name).read_bytes(), name


def test_a_run_that_no_cell_shows_is_named(runs, tmp_path):
    """A sparsity that the paper does not have: used by no table or figure, and by no claim as it has no other arm."""
    run = runs / "hydra-s2ap-1"
    config = run / "config.toml"
    config.write_text(config.read_text().replace("keep = 0.1\n", "keep = 0.07\n"))
    result = invoke("--runs", runs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "no table or figure" in line]
    assert "hydra 93 %, s2ap: 1 runs" in line
    assert str(run) in line
    assert "hydra 93" in (tmp_path / "out/README.md").read_text()
