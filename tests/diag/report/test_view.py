"""The summary holds what the runs' files say."""

import json

import pandas as pd
import pytest
from scipy.stats import binomtest

from tests.diag.report.pages import copy, report, row_of
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network")


def test_the_summary_says_what_the_run_found(trained, page):
    html = page.read_text(encoding="utf-8")
    run = trained / "s2ap"
    results = json.loads((run / "results.json").read_text())
    masks = [masks_in(run / f"masks/epoch-{epoch:03d}.safetensors") for epoch in (0, 3)]
    h = sum((masks[0][n] ^ masks[1][n]).sum().item() for n in masks[0]) / sum(m.size for m in masks[0].values())
    seconds = pd.read_csv(run / "timing.csv")["seconds"].sum()
    accuracies = [
        f"{100 * results[f'evaluate-{stage}'][f'{kind}_accuracy']:.1f}"
        for stage in ("prune", "finetune")
        for kind in ("clean", "robust")
    ]
    row = row_of(html, "s2ap")
    assert [
        row[f"{stage} {kind}, %"] for stage in ("raw mask", "finetuned") for kind in ("clean", "robust")
    ] == accuracies
    expected = {
        "data": "digits", "network": "tiny", "method": "hydra", "arm": "s2ap", "γ": "0.01", "sparsity": "70 %",
        "seed": "10", "attack": "pgd-50", "norm": "Linf", "eps": "32/255", "n": "12", "h": f"{h:.4g}",
        "seconds": f"{seconds:.0f}", "ΔL at ρ = 0.01": "–",
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    (measured,) = json.loads((trained / "orig/sharpness.json").read_text())
    orig = row_of(html, "orig")
    assert (orig["arm"], orig["γ"], orig["sparsity"], orig["seed"]) == ("orig", "–", "70 %", "9")
    assert float(orig["λ_max, BatchNorm running"]) == pytest.approx(measured["lambda_max"], rel=1e-3)
    assert float(orig["live λ_max"]) == pytest.approx(measured["lambda_max_live"], rel=1e-3)
    assert float(orig["ΔL at ρ = 0.01"]) == pytest.approx(measured["loss_difference"]["0.01"]["mean"], rel=1e-3)
    unpruned = row_of(html, "dense")
    assert [unpruned[key] for key in ("method", "arm", "γ", "sparsity")] == ["–", "–", "–", "dense"]
    assert {unpruned[key] for key in unpruned if key.startswith(("raw mask", "finetuned", "λ", "live", "Δ"))} == {"–"}


def test_lambda_max_names_its_source_and_batch_norm(trained, tmp_path):
    """Tracked values stand in where none was measured; values of two modes are told apart."""
    tracked = copy(trained / "s2ap", tmp_path / "tracked/run")
    assert report(tmp_path / "tracked").exit_code == 0
    html = (tmp_path / "tracked/report.html").read_text()
    rows = pd.read_csv(tracked / "metrics.csv")
    for column, metric in (
        ("λ_max, BatchNorm running", "lambda_max_running"),
        ("live λ_max", "lambda_max_live_running"),
    ):
        last = rows[(rows.metric == metric) & (rows.epoch == 3) & rows.iteration.isna()]["value"].item()
        assert float(row_of(html, "run")[column]) == pytest.approx(last, rel=1e-3)
    assert "λ_max, BatchNorm running" in html
    assert "mean over the readings of the last epoch" in html
    for mode in ("running", "batch"):
        file = copy(trained / "orig", tmp_path / "both" / mode) / "sharpness.json"
        file.write_text(json.dumps([{**json.loads(file.read_text())[0], "batch_norm": mode}]))
    assert report(tmp_path / "both").exit_code == 0
    html = (tmp_path / "both/report.html").read_text()
    assert [row_of(html, mode)["λ_max"].split()[1] for mode in ("running", "batch")] == ["running", "batch"]
    assert "mean over the readings of the last epoch" not in html


def test_accuracies_carry_their_wilson_interval(trained, parsed):
    results = json.loads((trained / "s2ap/results.json").read_text())["evaluate-finetune"]
    correct = round(12 * results["robust_accuracy"])
    interval = binomtest(correct, 12).proportion_ci(method="wilson")
    said = f"95 % Wilson interval {100 * interval.low:.1f}–{100 * interval.high:.1f} %, 12 images, pgd-50"
    assert [a["title"] for a in parsed.all("td") if (a.get("title") or "").startswith(said)]


def test_a_sharpness_without_the_live_reading_is_shown_all_the_same(trained, tmp_path):
    file = copy(trained / "orig", tmp_path / "runs/before") / "sharpness.json"
    (measured,) = json.loads(file.read_text())
    del measured["lambda_max_live"]
    file.write_text(json.dumps([measured]))
    assert report(tmp_path / "runs").exit_code == 0
    row = row_of((tmp_path / "runs/report.html").read_text(), "before")
    assert float(row["λ_max, BatchNorm running"]) == pytest.approx(measured["lambda_max"], rel=1e-3)
    assert "live λ_max" not in row
