"""The tables' numbers against ones computed naively from the runs' files."""

import csv
import json
import re
import shutil
import statistics

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from figures.cheaper import command as cheaper
from figures.reference import load
from s2ap_core.data.cifar10c import CORRUPTIONS
from tests.figures.rendering import HYDRA, cells, clone, correct, one, render, wilson


@pytest.mark.parametrize(("table", "stage"), [("table1", "finetune"), ("table5", "prune")])
@pytest.mark.parametrize("arm", ["orig", "s2ap"])
def test_accuracies_are_means_over_seeds(made, rendered, table, stage, arm):
    both = [[correct(made, "hydra", a, seed, stage, "robust") for seed in (0, 1)] for a in ("orig", "s2ap")]
    assert not np.array_equal(*both)
    for metric in ("robust", "clean") if table == "table1" else ("robust",):
        values = [100 * correct(made, "hydra", arm, seed, stage, metric).mean() for seed in (0, 1)]
        row = one(rendered / f"{table}.csv", **HYDRA, data="cifar10", arm=arm, metric=f"{metric}_accuracy")
        assert float(row["measured"]) == pytest.approx(np.mean(values))
        assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert row["seeds"] == "2"
        paper = (
            load(table)
            .query(
                f"network == 'resnet18' and method == 'hydra' and sparsity == 90 and minimizer == '{arm}'"
                f" and metric == '{metric}_accuracy' and dataset == 'cifar10'"
            )["value"]
            .item()
        )
        assert float(row["paper"]) == paper
        assert float(row["difference"]) == pytest.approx(np.mean(values) - paper)


def test_gap_is_recomputed(made, rendered):
    mean = {
        (arm, kind): np.mean([100 * correct(made, "hydra", arm, seed, "finetune", kind).mean() for seed in (0, 1)])
        for arm in ("orig", "s2ap")
        for kind in ("clean", "robust")
    }
    row = one(rendered / "table1.csv", **HYDRA, metric="gap")
    gap = mean["orig", "clean"] - mean["orig", "robust"] - mean["s2ap", "clean"] + mean["s2ap", "robust"]
    assert float(row["measured"]) == pytest.approx(gap)
    assert float(row["difference"]) == pytest.approx(gap - 0.47)  # as printed
    markdown = (rendered / "table8.md").read_text()
    assert markdown.count("‡") - 1 == 19  # the paper's contradictions, and the caption
    assert len(cells(rendered / "table8.csv", metric="gap", paper_disagrees="True")) == 19


def test_arms_are_compared_on_the_same_images(made, rendered):
    differences = [
        correct(made, "hydra", "s2ap", seed, "finetune", "robust").astype(int)
        - correct(made, "hydra", "orig", seed, "finetune", "robust")
        for seed in (0, 1)
    ]
    row = one(rendered / "table1.csv", **HYDRA, arm="s2ap - orig", metric="robust_accuracy")
    assert float(row["measured"]) == pytest.approx(100 * np.mean(differences))
    assert float(row["std"]) == pytest.approx(100 * np.std([d.mean() for d in differences], ddof=1))
    assert (row["interval_low"], row["p"], row["mark"]) == ("", "", "")  # two seeds
    assert [r["seed"] for r in cells(rendered / "table1.csv", **HYDRA, metric="mcnemar_p")] == ["0", "1"]


def test_dense_networks_once_for_each_seed(made, rendered):
    values = [100 * correct(made, "harp", "orig", seed, "pretrain", "clean").mean() for seed in (0, 1)]
    row = one(rendered / "table6.csv", data="cifar10", network="resnet18", metric="clean_accuracy")
    assert float(row["measured"]) == pytest.approx(np.mean(values))
    assert row["seeds"] == "2"
    assert float(row["paper"]) == 81.55


def test_hours_and_both_overheads(made, rendered):
    def hours(arm, after=0):
        found = []
        for seed in (0, 1):
            with (made / f"harp-{arm}-{seed}" / "timing.csv").open() as file:
                rows = [row for row in csv.DictReader(file) if row["stage"] == "prune" and float(row["epoch"]) > after]
            found.append(sum(float(row["seconds"]) for row in rows) / 3600)
        return np.mean(found)

    def measured(**wanted):
        return float(
            one(rendered / "table7.csv", data="cifar10", network="resnet18", method="harp", **wanted)["measured"]
        )

    orig, s2ap = hours("orig"), hours("s2ap")
    assert measured(arm="orig", metric="hours") == pytest.approx(orig)
    assert measured(arm="s2ap", metric="hours") == pytest.approx(s2ap)
    assert measured(metric="overhead_over_orig") == pytest.approx(100 * (s2ap - orig) / orig)
    assert measured(metric="overhead_over_s2ap") == pytest.approx(100 * (s2ap - orig) / s2ap)
    later = 100 * (hours("s2ap", 1) / hours("orig", 1) - 1)
    assert measured(metric="overhead_after_warmup") == pytest.approx(later)


def test_table_7_has_the_spread_over_pairs_of_searches(runs, tmp_path):
    """Two seeds at 90 % and one at 80 %; a search whose other arm is missing has no part in it."""
    for arm in ("orig", "s2ap"):
        clone(runs / f"harp-{arm}-0", f"dense-{arm}", keep=("keep = 0.1", "keep = 0.2"))
    clone(runs / "harp-orig-0", "alone", keep=("keep = 0.1", "keep = 0.05"))
    took = {"harp-orig-0": 10, "harp-s2ap-0": 12, "harp-orig-1": 11, "harp-s2ap-1": 12}
    took |= {"dense-orig": 12, "dense-s2ap": 18, "alone": 500}
    for name, minutes in took.items():
        rows = "".join(f"prune,{epoch},{20 * minutes}\n" for epoch in (1, 2, 3))
        (runs / name / "timing.csv").write_text(f"stage,epoch,seconds\n{rows}")
    render(runs, tmp_path / "out", "table7")
    wanted = {"data": "cifar10", "network": "resnet18", "method": "harp"}
    over = one(tmp_path / "out" / "table7.csv", **wanted, metric="overhead_over_orig")
    assert float(over["measured"]) == pytest.approx(100 * (42 / 33 - 1))
    assert float(over["std"]) == pytest.approx(statistics.stdev([20, 100 / 11, 50]))
    hours = one(tmp_path / "out" / "table7.csv", **wanted, arm="s2ap", metric="hours")
    assert float(hours["measured"]) == pytest.approx(14 / 60)
    assert float(hours["std"]) == pytest.approx(statistics.stdev([12, 12, 18]) / 60)
    (row,) = [line for line in (tmp_path / "out" / "table7.md").read_text().splitlines() if "HARP | 80 %, 90 %" in line]
    assert "| 0.18 ± 0.017 | 0.23 ± 0.058 | +27.3 ± 21.2 |" in row
    assert "| 3 |" in row


def test_one_seed_has_its_interval_over_images_in_tables(one_seed, rendered, tmp_path):
    render(one_seed, tmp_path / "out", "table1", "table13")
    row = one(tmp_path / "out" / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")
    low, high = wilson(correct(one_seed, "hydra", "orig", 0, "finetune", "robust"))
    assert (float(row["interval_low"]), float(row["interval_high"])) == pytest.approx((low, high))
    assert rf"\[{low:.2f}, {high:.2f}\]" in (tmp_path / "out" / "table1.md").read_text()
    assert one(rendered / "table1.csv", **HYDRA, arm="orig", metric="robust_accuracy")["interval_low"] == ""
    sharpness = one(tmp_path / "out" / "table13.csv", **HYDRA, arm="orig", rho="0.01")
    assert (sharpness["seeds"], sharpness["std"], sharpness["interval_low"]) == ("1", "", "")


def test_loss_differences_by_rho(made, rendered):
    for rho in ("0.0025", "0.01"):
        values = [
            json.loads((made / f"hydra-s2ap-{seed}" / "sharpness.json").read_text())[0]["loss_difference"][rho]["mean"]
            for seed in (0, 1)
        ]
        row = one(rendered / "table13.csv", **HYDRA, arm="s2ap", rho=rho)
        assert float(row["measured"]) == pytest.approx(np.mean(values))
        assert row["paper"] == ""  # the text lost that column
    assert one(rendered / "table13.csv", **HYDRA, arm="s2ap", rho="0.001")["measured"] == ""  # was not measured
    drawn = cells(rendered / "fig3.csv", panel="ResNet-18, HYDRA", series="s2ap", x="90 %")
    assert [float(row["value"]) for row in drawn] == pytest.approx(values)
    assert "BatchNorm: running" in (rendered / "table13.md").read_text()


def test_what_was_not_run_says_so(rendered):
    rows = [line for line in (rendered / "table2.md").read_text().splitlines() if line.startswith("| ResNet-18")]
    assert len(rows) == 8
    assert all(line.count("not run") == 2 for line in rows)
    assert one(rendered / "table2.csv", **HYDRA, arm="orig", metric="robust_accuracy")["measured"] == ""
    assert "41.83" in (rendered / "table2.md").read_text()  # the paper's number stays


def test_captions_name_the_attack(rendered):
    said = (rendered / "table1.md").read_text().splitlines()[0]
    assert "pgd-50, Linf, eps 32/255, 30 test images" in said
    assert "Trained with objective trades, beta 6.0, norm Linf, eps 32/255, step 16/255, steps 2." in said
    assert "pgd-50, Linf, eps 32/255, 30 test images" in (rendered / "README.md").read_text()


def test_corruptions_are_averaged(runs, tmp_path):
    rng = np.random.default_rng(0)
    means = []
    for corruption in CORRUPTIONS:
        for severity in (3, 5):
            clean = rng.random(20) < 0.6
            about = {"corruption": corruption, "severity": severity, "attack": "none", "norm": "Linf", "eps": "0"}
            file = runs / "hydra-orig-0" / "evals" / f"finetune-best-none-Linf-{corruption}-{severity}-seed0.npz"
            same = dict.fromkeys(("clean", "robust", "noise", "zero_gradient"), clean)
            np.savez(file, about=np.array(json.dumps(about)), index=np.arange(20), label=np.zeros(20, int), **same)
            means += [clean.mean()] if severity == 3 else []
    shutil.copy(file, runs / "hydra-s2ap-0" / "evals")  # one of fifteen is no mean
    render(runs, tmp_path / "out", "table11")
    row = one(tmp_path / "out" / "table11.csv", **HYDRA, arm="orig")
    assert float(row["measured"]) == pytest.approx(100 * np.mean(means))
    assert float(row["paper"]) == 71.54
    assert one(tmp_path / "out" / "table11.csv", **HYDRA, arm="s2ap")["measured"] == ""


def test_evaluations_of_other_images_are_not_compared(runs, tmp_path):
    file = runs / "hydra-orig-1" / "evals" / "finetune.npz"
    with np.load(file) as arrays:
        changed = {name: array if name == "about" else array[:20] for name, array in arrays.items()}
    np.savez(file, **changed)
    result = render(runs, tmp_path / "out", "table1")
    assert "other images" in result.stderr
    assert not cells(tmp_path / "out" / "table1.csv", **HYDRA, arm="s2ap - orig")


def test_csv_holds_no_index_column(rendered):
    assert list(pd.read_csv(rendered / "table1.csv").columns)[:3] == ["table", "data", "network"]


def test_cheaper_perturbations_stand_beside_orig_and_s2ap(runs, tmp_path):
    for seed in (0, 1):
        clone(runs / f"hydra-s2ap-{seed}", f"quarter-{seed}", kind=("subset = 1.0", "subset = 0.25"))
        clone(runs / f"hydra-s2ap-{seed}", f"wide-{seed}", gamma=("gamma = 0.001", "gamma = 0.005"))
    timing = runs / "quarter-0" / "timing.csv"
    faster = re.sub(r"(?m)^(prune,[23],).*$", r"\g<1>0.125", timing.read_text())
    timing.write_text(faster)
    result = CliRunner().invoke(cheaper, ["--runs", str(runs), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, (result.output, result.exception)
    rows = {row["perturbation"]: row for row in cells(tmp_path / "out" / "cheaper.csv")}
    assert set(rows) == {"Orig.", "S2AP", "S2AP, subset = 0.25"}
    for name, arm in (("Orig.", "orig"), ("S2AP", "s2ap"), ("S2AP, subset = 0.25", "s2ap")):
        robust = [100 * correct(runs, "hydra", arm, seed, "prune", "robust").mean() for seed in (0, 1)]
        assert float(rows[name]["robust accuracy of the mask (%)"]) == pytest.approx(np.mean(robust))
        assert rows[name]["robust accuracy of the mask (%), low"] in ("", None)  # no interval over two seeds

    def median(run):
        found = pd.read_csv(runs / run / "timing.csv")
        return found[(found["stage"] == "prune") & (found["epoch"] > 1)]["seconds"].median()

    ratios = [median(f"quarter-{seed}") / median(f"hydra-orig-{seed}") for seed in (0, 1)]
    assert float(rows["S2AP, subset = 0.25"]["time over Orig."]) == pytest.approx(np.mean(ratios))
