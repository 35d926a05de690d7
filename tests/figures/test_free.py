"""Settings that the paper does not have, and what is said of runs that nothing shows."""

import pytest
from PIL import Image

from figures.catalogue import load_catalogue
from tests.figures.rendering import IDS, cells, clone, correct, invoke, on, one


def test_the_catalogue_is_listed_without_runs():
    result = invoke("--list", "--wide")
    assert result.exit_code == 0, result.output
    rows = [line.split("│") for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == IDS
    for entry, row in zip(load_catalogue(), rows, strict=True):
        assert row[3].strip() == ", ".join(entry.needs)
    assert max(map(len, invoke("--list").stdout.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["--out", "x"], ["--list", "--free"], ["--claims"]])
def test_what_needs_runs_asks_for_them(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "--runs" in result.stderr


@pytest.fixture
def strange(runs):
    """Beside the paper's settings a keep of 0.07, both arms, another network, and gamma tried twice."""
    for arm in ("orig", "s2ap"):
        clone(runs / f"hydra-{arm}-0", f"thin-{arm}", keep=("keep = 0.1\n", "keep = 0.07\n"))
    clone(runs / "hydra-orig-0", "net", network=('name = "resnet18"', 'name = "resnet9"'))
    clone(runs / "hydra-s2ap-0", "other-gamma", gamma=("gamma = 0.001", "gamma = 0.01"))
    on(runs, "rings")
    return runs


def test_each_unused_run_has_its_reason(strange, tmp_path):
    """The claims show the settings that have both arms, the list does not."""
    for arguments, claimed in ((["--out", tmp_path / "out"], 2), (["--list"], 0)):
        result = invoke("--runs", strange, *arguments)
        assert result.exit_code == 0, result.output
        said = {line.split(":")[0]: line for line in result.stderr.splitlines() if "no table or figure" in line}
        reasons = {
            "cifar10 resnet18 hydra 93 %, orig": "budget 93 % is none of 80 %, 90 %, 95 %, 99 %: --free draws such",
            "cifar10 resnet18 hydra 93 %, s2ap": "budget 93 % is none of",
            "cifar10 resnet9 hydra 90 %, orig": "network resnet9 is none of resnet18, ",
            "cifar10 resnet18 hydra 90 %, s2ap": "its gamma is 0.01, the setting is shown at 0.001",
            "rings resnet18 hydra 90 %, orig": "--dataset rings puts it in the place of the paper's",
        }
        assert len(reasons) - len(said) == claimed
        assert all(reasons[setting] in line for setting, line in said.items())


def test_free_shows_those_settings_alone_in_the_papers_kinds(strange, tmp_path):
    result = invoke("--runs", strange, "--free", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = cells(tmp_path / "table-finetune.csv", metric="robust_accuracy", seeds=1)
    shown = {(row["data"], row["network"], row["sparsity"]) for row in rows}
    assert shown == {("cifar10", "resnet18", "93.0"), ("cifar10", "resnet9", "90.0"), ("rings", "resnet18", "90.0")}
    wanted = {"network": "resnet18", "sparsity": 93.0, "arm": "s2ap", "metric": "robust_accuracy"}
    expected = 100 * correct(strange, "hydra", "s2ap", 0, "finetune", "robust").mean()
    assert float(one(tmp_path / "table-finetune.csv", **wanted)["measured"]) == pytest.approx(expected)
    drawn = {file.stem for file in tmp_path.glob("fig-*.png")}
    of = ("cifar10-resnet18-hydra", "cifar10-resnet9-hydra", "rings-resnet18-hydra")
    kinds = ("effects", "eigenvalue", "hamming-both")
    assert drawn == {f"fig-{kind}-{name}" for kind in kinds for name in of} | {"fig-loss-difference"}
    curves = cells(tmp_path / "fig-eigenvalue-cifar10-resnet18-hydra.csv", panel="93 %", metric="lambda_max_batch")
    assert {row["series"] for row in curves} == {"orig", "s2ap"}
    page = (tmp_path / "README.md").read_text()
    assert "paper: Orig" not in page
    only = invoke("--runs", strange, "--free", "--only", "table-prune", "--out", tmp_path / "only")
    assert only.exit_code == 0, only.output
    assert [file.stem for file in (tmp_path / "only").glob("*.tex")] == ["table-prune"]


def test_free_without_such_settings_is_refused(made, tmp_path):
    result = invoke("--runs", made, "--free", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--free" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_was_not_run_takes_a_line(rendered):
    """Figure 2 has no runs, Figure 8 those of one sparsity of four, in inches of 200 pixels."""
    heights = {name: Image.open(rendered / f"{name}.png").size[1] for name in ("fig2", "fig8")}
    assert heights["fig2"] < 0.5 * 200
    assert heights["fig8"] < 3 * 200
