"""Which runs a cell is made of: those that belong there, were made alike and can be read; the others are named."""

import json
import re
import shutil

import numpy as np
import pytest

from tests.figures.rendering import HYDRA, cells, clone, correct, invoke, on, one, render


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"beta": ("beta = 6.0", "beta = 2.0")}, ["trained with", "beta 2.0", "beta 6.0"]),
        ({"objective": ('name = "trades"', 'name = "pgd-at"')}, ["trained with", "pgd-at", "trades"]),
        ({"eps": ('eps = "32/255"', 'eps = "8/255"')}, ["trained with", "eps 8/255"]),
        ({"step": ('step = "16/255"', 'step = "8/255"')}, ["trained with", "step 8/255"]),
        ({"steps": ("steps = 2\n", "steps = 10\n")}, ["trained with", "steps 10"]),
        ({"n": ("n = 30", "n = 20")}, ["evaluated with", "n 20", "n 30"]),
        ({"norm": ("n = 30", 'n = 30\nnorm = "L2"\neps = "1/2"')}, ["evaluated with", "norm L2"]),
        ({"trained": ('norm = "Linf"', 'norm = "L2"')}, ["trained with", "norm L2", "norm Linf"]),
        ({"radius": ("n = 30", 'n = 30\neps = "8/255"')}, ["evaluated with", "eps 8/255", "eps 32/255"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_trained_or_evaluated_otherwise_are_in_no_cell_and_named(runs, tmp_path, changed, words):
    clone(runs / "hydra-orig-0", "other", **changed)
    shutil.rmtree(runs / "hydra-orig-0")
    result = render(runs, tmp_path / "out", "table1", "table6")
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    expected = 100 * correct(runs, "hydra", "orig", 1, "finetune", "robust").mean()
    assert (row["seeds"], float(row["measured"])) == ("1", pytest.approx(expected))
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in [str(runs / "other"), *words])
    assert "other" in (tmp_path / "out" / "README.md").read_text()


def test_what_an_objective_does_not_read_does_not_set_runs_apart(runs, tmp_path):
    """Clean training has no adversary, so its radius is that of nothing."""
    for seed, eps in ((0, "32/255"), (1, "8/255")):
        for arm in ("orig", "s2ap"):
            clone(
                runs / f"hydra-{arm}-{seed}",
                f"clean-{arm}-{seed}",
                objective=('name = "trades"', 'name = "clean"'),
                attack=('attack = "pgd-50"', 'attack = "none"'),
                eps=('eps = "32/255"', f'eps = "{eps}"'),
            )
    render(runs, tmp_path / "out", "table10")
    assert one(tmp_path / "out" / "table10.csv", **HYDRA, arm="s2ap")["seeds"] == "2"


def test_two_runs_of_one_place_are_both_left_out_and_named(runs, tmp_path):
    clone(runs / "hydra-orig-1", "again")
    result = render(runs, tmp_path / "out", "table1")
    (line,) = [line for line in result.stderr.splitlines() if "again" in line]
    assert "hydra-orig-1" in line
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    assert row["seeds"] == "1"
    expected = 100 * correct(runs, "hydra", "orig", 0, "finetune", "robust").mean()
    assert float(row["measured"]) == pytest.approx(expected)
    assert "again" in (tmp_path / "out" / "README.md").read_text()
    listed = invoke("--runs", runs, "--list")
    assert "again" in listed.stderr


def test_a_damaged_run_spoils_nothing_else(runs, tmp_path):
    mask = runs / "hydra-orig-1" / "masks" / "epoch-002.safetensors"
    mask.write_bytes(mask.read_bytes()[:-7])
    results = runs / "harp-s2ap-0" / "results.json"
    results.write_text(json.dumps({k: v for k, v in json.loads(results.read_text()).items() if "finetune" not in k}))
    result = render(runs, tmp_path / "out", "fig6", "table1")
    lines = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == 2
    assert any("hydra-orig-1" in line and "epoch-002" in line for line in lines)
    assert any("harp-s2ap-0" in line and "half done" in line for line in lines)
    assert {row["seed"] for row in cells(tmp_path / "out" / "fig6.csv")} == {"0"}
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")["seeds"] == "1"
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap", metric="robust_accuracy")["seeds"] == "2"


@pytest.mark.parametrize(
    "change",
    [
        ('source = "pass"', 'source = "last"'),
        ("subset = 1.0", "subset = 0.5"),
        ("\nevery = 1\nupdate", "\nevery = 2\nupdate"),
        ("carry = false", "carry = true"),
        ("eta_z = inf", 'eta_z = "lr"'),
        ('update = "method"', 'update = "normalized"'),
        ("awp = true", "awp = false"),
        ("gamma = 0.001", "gamma = 0.005"),
    ],
)
def test_runs_of_another_kind_are_in_no_cell(runs, tmp_path, change):
    clone(runs / "hydra-s2ap-0", "other", kind=change)
    shutil.rmtree(runs / "hydra-s2ap-0")
    result = render(runs, tmp_path / "out", "table1")
    assert one(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap", metric="robust_accuracy")["seeds"] == "1"
    of_the_paper = change[0].startswith(("awp", "gamma"))
    assert any("other: s2ap by" in line for line in result.stderr.splitlines()) == (not of_the_paper)


def test_figure_5_takes_every_gamma_and_table_5_the_papers(runs, tmp_path):
    """Two runs at each of two gammas, of which the paper's is the rarer."""
    for seed in (0, 1):
        clone(runs / f"harp-s2ap-{seed}", f"wide-{seed}", gamma=("gamma = 0.001", "gamma = 0.005"))
    shutil.rmtree(runs / "harp-s2ap-0")
    render(runs, tmp_path / "out", "fig5", "table5")
    drawn = cells(tmp_path / "out" / "fig5.csv")
    assert [(row["x"], row["seed"]) for row in drawn] == [("0.001", "1"), ("0.005", "0"), ("0.005", "1")]
    expected = 100 * correct(runs, "harp", "s2ap", 1, "prune", "robust").mean()
    assert float(drawn[0]["value"]) == pytest.approx(expected)
    wanted = {"data": "cifar10", "network": "resnet18", "method": "harp", "sparsity": "90", "arm": "s2ap"}
    row = one(tmp_path / "out" / "table5.csv", **wanted)
    assert (row["gamma"], row["seeds"]) == ("0.001", "1")


def test_another_data_set_stands_in(runs, tmp_path):
    """Its gamma is the commonest; the paper's numbers are shown, no difference to them is."""
    for source, gamma in (("hydra-s2ap-0", "0.005"), ("hydra-s2ap-1", "0.005"), ("harp-s2ap-0", "0.001")):
        on(runs, "rings", source, gamma=("gamma = 0.001", f"gamma = {gamma}")).rename(runs / f"rings-{source}")
    on(runs, "rings")
    render(runs, tmp_path / "out", "table1", "table2", "table11", dataset="rings")
    s2ap = one(tmp_path / "out" / "table1.csv", **HYDRA, data="rings", arm="s2ap", metric="robust_accuracy")
    assert (s2ap["seeds"], s2ap["gamma"], s2ap["paper"], s2ap["difference"]) == ("2", "0.005", "47.27", "")
    said = (tmp_path / "out" / "table1.md").read_text()
    assert "of CIFAR-10, the measured ones of rings" in said
    assert "measured − paper" not in said
    assert "0.005 (ResNet-18 HYDRA)" in said
    assert "CIFAR-10-C is of CIFAR-10 alone" in (tmp_path / "out" / "table11.md").read_text()
    assert (tmp_path / "out" / "table2.csv").is_file()  # as it was named
    listed = invoke("--runs", runs, "--list", "--dataset", "rings", "--wide")
    assert re.search(r"table2 .*as table1", listed.stdout)
    assert re.search(r"table1 .* 3 of 48", listed.stdout)  # HYDRA with both arms, HARP with S2AP


def test_dense_networks_that_differ_are_complained_about(runs, tmp_path):
    results = runs / "hydra-s2ap-1" / "results.json"
    changed = json.loads(results.read_text())
    changed["evaluate-pretrain"]["robust_accuracy"] += 0.1
    results.write_text(json.dumps(changed))
    result = render(runs, tmp_path / "out", "table6")
    assert "hydra-s2ap-1" in result.stderr
    assert "differ" in result.stderr


def test_runs_that_were_not_made_alike_are_named(runs, tmp_path):
    config = runs / "hydra-orig-1" / "config.toml"
    config.write_text(config.read_text().replace("momentum = 0.9", "momentum = 0.5"))
    result = render(runs, tmp_path / "out", "table1")
    (line,) = result.stderr.splitlines()
    assert "prune.momentum" in line
    assert "hydra" in line


def test_runs_under_another_attack_are_a_table_of_their_own(runs, tmp_path):
    """The commonest attack is shown; the other one's runs claim no cell of it, and can be asked for."""
    other = clone(runs / "hydra-orig-0", "other", attack=('attack = "pgd-50"', 'attack = "apgd"'))
    with np.load(other / "evals" / "finetune.npz") as arrays:
        changed = {**arrays, "robust": np.zeros_like(arrays["robust"])}
    np.savez_compressed(other / "evals" / "finetune.npz", **changed)
    render(runs, tmp_path / "common", "table1")
    row = one(tmp_path / "common" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    expected = np.mean([100 * correct(runs, "hydra", "orig", seed, "finetune", "robust").mean() for seed in (0, 1)])
    assert (float(row["measured"]), row["seeds"]) == (pytest.approx(expected), "2")
    render(runs, tmp_path / "other", "table1", attack="apgd")
    row = one(tmp_path / "other" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    assert (float(row["measured"]), row["seeds"]) == (0.0, "1")
