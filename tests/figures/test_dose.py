"""Doses of mask flips on runs whose readings are set: effects against scipy's t-test, agreement by counting pairs."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from figures.cheaper import table
from figures.dose import studies
from s2ap_diag.reading.results import collect
from tests.figures.conftest import invoke

pytestmark = pytest.mark.usefixtures("tiny_network")

FOLDS, DOSES = 4, (0.01, 0.03)
MOVES = {"gradient": -1, "random": 0, "reversed": 1}


def place(made, runs, fold, direction, dose, difference, robust):
    """Make a run with this loss difference and these robust images of both stages; return what is counted of it."""
    run = runs / f"{direction}-{dose}-{fold}"
    shutil.copytree(made / f"hydra-{'orig' if direction == 'orig' else 's2ap'}-{fold % 2}", run)
    text = (run / "config.toml").read_text().replace(f"seed = {fold % 2}", f"seed = {fold}")
    text = text.replace("awp = true", "awp = false").replace("[data]\n", "[data]\n")
    if direction != "orig":
        text = text.replace("gamma = 0.001", 'gamma = "flips"', 1)
        text = text.replace("flips = 0.003", f"flips = {dose}").replace('"gradient"', f'"{direction}"')
    text = text.replace("[data.options]", f"[data.options]\nfold = {fold}")
    (run / "config.toml").write_text(text)
    (record,) = json.loads((run / "sharpness.json").read_text())
    record["loss_difference"]["0.01"]["mean"] = difference
    record["lambda_max_live"] = 10**difference
    (run / "sharpness.json").write_text(json.dumps([record]))
    results = json.loads((run / "results.json").read_text())
    for stage in ("prune", "finetune"):
        kept = dict(np.load(run / f"evals/{stage}.npz"))
        kept["robust"], kept["clean"] = robust, np.ones_like(robust)
        kept["about"] = np.array(json.dumps(json.loads(str(kept["about"])) | {"options": {"fold": fold}}))
        np.savez(run / f"evals/{stage}.npz", **kept)
        results[f"evaluate-{stage}"] |= {"robust_accuracy": float(robust.mean()), "clean_accuracy": 1.0}
    (run / "results.json").write_text(json.dumps(results))
    return difference, 100 * robust.mean()


@pytest.fixture
def world(made, tmp_path):
    """``world(follows)``: runs of three directions whose robustness falls (1) or rises (-1) with their sharpness."""

    def make(follows):
        rng, counted = np.random.default_rng(1), {}
        runs = tmp_path / "runs"
        for fold, direction in itertools.product(range(FOLDS), ("orig", *MOVES)):
            for dose in (0.0,) if direction == "orig" else DOSES:
                move = MOVES.get(direction, 0) * (1 + 20 * dose)
                right = 16 - round(follows * 5 * move) + int(rng.integers(-1, 2) if follows else rng.integers(-5, 6))
                robust = np.arange(30) < right
                counted[fold, direction, dose] = place(
                    made, runs, fold, direction, dose, 3 + move + 0.1 * rng.normal(), robust
                )
        return runs, counted

    return make


def test_effects_are_mean_differences_from_no_flips_over_folds(world, tmp_path):
    runs, counted = world(1)
    assert table(collect(runs)[0]).empty  # no cheaper way to a z of the paper's
    (study,) = studies(collect(runs)[0])
    assert study.directions == ["gradient", "random", "reversed"]
    for direction, (index, metric) in itertools.product(MOVES, enumerate(("loss_difference", "mask_robust"))):
        by_fold = [
            np.mean([counted[fold, direction, dose][index] - counted[fold, "orig", 0.0][index] for dose in DOSES])
            for fold in range(FOLDS)
        ]
        effect = study.effect(direction, metric)
        assert effect.mean == pytest.approx(np.mean(by_fold))
        assert effect.p == pytest.approx(ttest_1samp(by_fold, 0).pvalue, rel=1e-6)
    assert study.verdict == "sharpness drives robustness here"
    result = invoke("--runs", runs, "--claims", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "sharpness drives robustness here" in result.output
    numbers = pd.read_csv(tmp_path / "out/dose.csv")
    row = numbers[(numbers.direction == "reversed") & (numbers.dose == 0.03) & (numbers.metric == "loss_difference")]
    expected = [counted[f, "reversed", 0.03][0] - counted[f, "orig", 0.0][0] for f in range(FOLDS)]
    assert row.difference.item() == pytest.approx(np.mean(expected))
    assert (tmp_path / "out/dose.png").stat().st_size > 10_000


def test_flatter_and_less_robust_is_not_shown_and_says_what_was_seen(world):
    runs, _ = world(-1)
    (study,) = studies(collect(runs)[0])
    assert study.verdict.startswith("not shown: ")
    assert "gradient lowers ΔL of the mask's scores" in study.verdict
    assert "gradient lowers robust accuracy, mask" in study.verdict


def test_where_robustness_does_not_move_the_seeds_that_would_decide_are_named(world):
    runs, _ = world(0)
    (study,) = studies(collect(runs)[0])
    assert study.verdict.startswith("not shown: gradient lowers ΔL")
    assert "would resolve all effects on robustness" in study.verdict


def test_agreement_counts_pairs_within_each_fold(world):
    runs, counted = world(1)
    (study,) = studies(collect(runs)[0])
    taus = []
    for fold in range(FOLDS):
        points = [value for (own, _, _), value in counted.items() if own == fold]
        signs = [(np.sign(a[0] - b[0]), np.sign(a[1] - b[1])) for a, b in itertools.combinations(points, 2)]
        concordant = sum(x * y for x, y in signs)
        untied = np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
        taus.append(concordant / untied)
    assert study.agreement("loss_difference", "mask_robust").mean == pytest.approx(np.mean(taus))
    assert np.mean(taus) < -0.5
    # All are equally accurate on clean images, so only ties are left out.
    alike = study.agreement("loss_difference", "mask_robust", alike=True)
    assert alike.mean == pytest.approx(np.mean(taus), abs=0.2)


def test_runs_finetuned_otherwise_are_no_part_of_it(world):
    runs, _ = world(1)
    for config in runs.glob("gradient-*/config.toml"):
        config.write_text(config.read_text().replace("awp = false", "awp = true\ngamma = 0.001"))
    (study,) = studies(collect(runs)[0])
    assert study.directions == ["random", "reversed"]


def test_doses_are_compared_over_the_folds_that_all_have(world, tmp_path):
    runs, counted = world(1)
    shutil.rmtree(runs / "gradient-0.01-0")
    shutil.rmtree(runs / "reversed-0.03-1")
    (study,) = studies(collect(runs)[0])
    by_fold = [
        np.mean([counted[fold, "random", dose][0] - counted[fold, "orig", 0.0][0] for dose in DOSES]) for fold in (2, 3)
    ]
    assert study.effect("random", "loss_difference").by_unit == pytest.approx(by_fold)


def test_a_damaged_or_a_second_run_spoils_nothing_else(world, made, tmp_path):
    runs, _ = world(1)
    shutil.copytree(runs / "random-0.03-2", runs / "again")
    (runs / "orig-0.0-3/sharpness.json").write_text("{")
    result = invoke("--runs", runs, "--claims")
    assert result.exit_code == 0, result.output
    (study,) = studies(collect(runs)[0])
    assert len(study.effect("gradient", "loss_difference").by_unit) == FOLDS - 1
    assert any("random, 0.03: " in note and "twice" in note for note in study.notes)
