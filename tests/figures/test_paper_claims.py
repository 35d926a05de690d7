"""The paper's claims on runs whose evaluations are set: verdicts against scipy's paired t-test and Holm by hand."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from tests.figures.conftest import invoke

pytestmark = pytest.mark.usefixtures("tiny_network")

SEEDS = 4
RATES = {("harp", "orig"): 0.4, ("harp", "s2ap"): 0.75, ("hydra", "orig"): 0.6, ("hydra", "s2ap"): 0.62}


@pytest.fixture
def seeds(made, tmp_path):
    """Four seeds of HARP and HYDRA in both arms, with known accuracies under the attack, seeds on the same images."""
    rng = np.random.default_rng(0)
    accuracies = {}
    for (method, arm), rate in RATES.items():
        for seed in range(SEEDS):
            run = tmp_path / "runs" / f"{method}-{arm}-{seed}"
            shutil.copytree(made / f"{method}-{arm}-{seed % 2}", run)
            config = run / "config.toml"
            config.write_text(config.read_text().replace(f"seed = {seed % 2}", f"seed = {seed}"))
            for stage in ("prune", "finetune"):
                kept = dict(np.load(run / f"evals/{stage}.npz"))
                kept["robust"] = rng.random(len(kept["index"])) < rate
                kept["clean"] = np.ones_like(kept["robust"])
                kept["about"] = np.array(json.dumps(json.loads(str(kept["about"])) | {"options": {"fold": seed}}))
                np.savez(run / f"evals/{stage}.npz", **kept)
                accuracies[method, arm, stage, seed] = 100 * kept["robust"].mean()
    return tmp_path / "runs", accuracies


def test_verdicts_are_those_of_the_paired_t_test_after_holm(seeds, tmp_path):
    runs, accuracies = seeds
    result = invoke("--runs", runs, "--claims", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "out/claims.csv")
    rows = found[(found.metric == "mask_robust") & (found.first_arm == "orig")].set_index("method")
    p = {}
    for method in ("harp", "hydra"):
        first, second = ([accuracies[method, arm, "prune", s] for s in range(SEEDS)] for arm in ("orig", "s2ap"))
        p[method] = ttest_rel(second, first).pvalue
        assert rows.p[method] == pytest.approx(p[method])
        assert rows.difference[method] == pytest.approx(np.mean(second) - np.mean(first))
    assert rows.adjusted_p["harp"] == pytest.approx(2 * p["harp"])  # the smaller of two
    assert p["harp"] < 0.025 < 0.05 < p["hydra"]
    assert dict(rows.verdict) == {"harp": "supported", "hydra": "undecided"}
    gaps = found[found.metric == "finetuned_gap"].set_index("method")
    finetuned = found[(found.metric == "finetuned_robust") & (found.second_arm == "s2ap")].set_index("method")
    # All are right on clean images, so the gap falls as much as the robust accuracy rises.
    assert gaps.difference.to_dict() == pytest.approx((-finetuned.difference).to_dict())
    assert [v == "supported" for v in gaps.verdict] == [p < 0.05 for p in gaps.adjusted_p]
    assert "supported" in result.output


def test_tracked_claims_average_the_epochs_after_the_warmup(seeds, tmp_path):
    runs, _ = seeds
    assert invoke("--runs", runs, "--claims", "--out", tmp_path / "out").exit_code == 0
    found = pd.read_csv(tmp_path / "out/claims.csv")
    row = found[(found.metric == "tracked_lambda_max_live_batch") & (found.method == "harp")].iloc[0]
    logs = {"orig": [], "s2ap": []}
    for arm, by_seed in logs.items():
        for seed in range(SEEDS):
            metrics = pd.read_csv(runs / f"harp-{arm}-{seed}/metrics.csv")
            read = metrics[(metrics.metric == "lambda_max_live_batch") & metrics.iteration.isna()]
            by_seed.append(np.log10(read.value[read.epoch >= 2]).mean())  # one epoch of warm-up
    assert row.difference == pytest.approx(np.mean(logs["s2ap"]) - np.mean(logs["orig"]))
    assert row.unit == "log10"


def test_networks_with_group_norm_are_cells_of_their_own_with_one_reading_of_lambda_max(seeds, tmp_path):
    runs, _ = seeds
    for run in runs.glob("harp-*"):
        config, metrics = run / "config.toml", run / "metrics.csv"
        assert 'norm = "batch"' in config.read_text()
        config.write_text(config.read_text().replace('norm = "batch"', 'norm = "group"'))
        lines = metrics.read_text().splitlines()
        kept = [line.replace("_running,", "_none,") for line in lines if "_batch," not in line]
        metrics.write_text("\n".join(kept) + "\n")
    result = invoke("--runs", runs, "--claims", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "out/claims.csv")
    assert set(found.network[found.method == "harp"]) == {"resnet18 with group norm"}
    assert set(found.network[found.method == "hydra"]) == {"resnet18"}
    tracked = {method: set(of.metric[of.metric.str.contains("live")]) for method, of in found.groupby("method")}
    live = "tracked_lambda_max_live"
    assert tracked == {"harp": {f"{live}_none"}, "hydra": {f"{live}_running", f"{live}_batch"}}
    assert "ResNet-18 with group norm" in (tmp_path / "out/claims.md").read_text()


def test_fewer_than_three_seeds_decide_nothing(made, tmp_path):
    assert invoke("--runs", made, "--claims", "--out", tmp_path / "out").exit_code == 0
    found = pd.read_csv(tmp_path / "out/claims.csv")
    assert set(found.seeds) == {2}
    assert set(found.verdict) == {"undecided"}
    assert found.interval_low.isna().all()


def test_the_page_begins_with_the_claims(rendered):
    page = (rendered / "README.md").read_text()
    assert page.index("## Claims") < page.index("## Table 1")
