"""Two arms side by side, on runs whose evaluations and sharpness are set: against scipy's tests and sums by hand."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp, ttest_rel

from s2ap_core.data import InMemory
from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import load_evaluation
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from s2ap_diag.comparison.arms import compare_arms
from s2ap_diag.output import forest, plots
from s2ap_diag.reading.results import open_run

pytestmark = pytest.mark.usefixtures("tiny_network")

SEEDS, IMAGES = range(5), 80
RNG = np.random.default_rng(0)
ROBUST = {arm: RNG.random((5, IMAGES)) < rate for arm, rate in (("orig", 0.5), ("s2ap", 0.65))}
LAMBDA = {"orig": RNG.uniform(5, 9, 5), "s2ap": RNG.uniform(1, 9, 5)}
FLIPPED = {"orig": 0.02 + RNG.random(5) / 1000, "s2ap": 0.03 + RNG.random(5) / 1000}


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_run: Callable[..., Any], data: InMemory, tiny_network) -> Path:
    """A finished run of each arm."""
    folder = tmp_path_factory.mktemp("trained")
    for arm, minimizer in (("orig", {"name": "none"}), ("s2ap", {"name": "s2ap", "gamma": 0.01, "warmup": 1})):
        Stages(new_run(folder / arm, minimizer=minimizer, finetune={"awp": arm == "s2ap"}), data).all()
    return folder


def changed(run: Path, **settings: Any) -> None:
    """Change settings of a run's config."""
    config = tomllib.loads((run / "config.toml").read_text())
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (run / "config.toml").write_text(tomli_w.dumps(config))


def evaluated(run: Path, robust: np.ndarray, fold: int = 0) -> None:
    """Let a run's finetuned network have been right on these images of a fold under the attack."""
    index = np.arange(len(robust))
    kept = dict(np.load(run / "evals/finetune.npz"))
    kept["about"] = np.array(json.dumps(json.loads(str(kept["about"])) | {"options": {"fold": fold}}))
    arrays = {"index": index, "label": index % 10, "clean": np.ones_like(robust), "robust": robust}
    kept |= arrays | {"noise": np.ones_like(robust), "zero_gradient": np.zeros_like(robust)}
    np.savez(run / "evals/finetune.npz", **kept)


def sharpness(value: float, **changes: Any) -> str:
    ascent = {"ascent": "exchange", "steps": 20, "restarts": 3}
    by_rho = {"0.01": {"mean": value / 2} | ascent, "0.1": {"mean": 9.0} | ascent}
    about = {"batch_norm": "running", "adversary": "trades", "batches": 1, "batch_size": 8, "n_scores": 100}
    return json.dumps(
        [{"lambda_max": 10 * value, "lambda_max_live": value, "loss_difference": by_rho} | about | changes]
    )


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Five seeds of each arm, each seed tested on images of its own."""
    for arm in ROBUST:
        for seed in SEEDS:
            run = tmp_path / arm / str(seed)
            shutil.copytree(trained / arm, run)
            changed(run, seed=seed)
            evaluated(run, ROBUST[arm][seed], fold=seed)
            (run / "sharpness.json").write_text(sharpness(LAMBDA[arm][seed]))
    return tmp_path


def records(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_numbers_are_those_of_the_paired_t_test(runs):
    (found,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    assert (found["arms"], found["seeds"]) == (["orig", "s2ap"], list(SEEDS))
    accuracy = {arm: 100 * robust.mean(axis=1) for arm, robust in ROBUST.items()}
    metric = found["metrics"]["finetuned_robust"]
    peer = ttest_rel(accuracy["s2ap"], accuracy["orig"])
    assert (metric["first"], metric["second"]) == pytest.approx((accuracy["orig"].mean(), accuracy["s2ap"].mean()))
    assert (metric["low"], metric["high"]) == pytest.approx(tuple(peer.confidence_interval()))
    assert (metric["p"], metric["adjusted_p"], metric["seeds"]) == pytest.approx((peer.pvalue, peer.pvalue, 5))
    ratio = np.log10(LAMBDA["s2ap"] / LAMBDA["orig"])
    metric = found["metrics"]["lambda_max_live"]
    assert (metric["difference"], metric["unit"]) == (pytest.approx(ratio.mean()), "log10")
    assert metric["p"] == pytest.approx(ttest_rel(np.log10(LAMBDA["s2ap"]), np.log10(LAMBDA["orig"])).pvalue)
    metric = found["metrics"]["loss_difference"]
    assert (metric["condition"], metric["difference"], metric["p"]) == ("at rho = 0.1", 0.0, 1.0)


def test_another_normalisation_is_another_setting(runs):
    for seed in SEEDS:
        config = runs / "s2ap" / str(seed) / "config.toml"
        config.write_text(config.read_text().replace('norm = "batch"', 'norm = "group"'))
    result = compare(runs / "orig", runs / "s2ap")
    assert result.exit_code == 2
    assert "with group norm" in result.output
    assert "share no setting" in result.output


def test_the_settings_that_differ_are_named(runs):
    (found,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    differences = found["config_differences"]
    assert differences.pop("minimizer.name") == ["none", "s2ap"]
    assert differences.pop("finetune.awp") == ["False", "True"]
    assert all(key.startswith("minimizer.") for key in differences)  # not the seeds


def test_arms_are_told_apart_within_one_folder(runs):
    (apart,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    (together,) = records(compare(runs, "--arm", "orig", "--arm", "s2ap", "--json", "-"))
    assert together == apart


def test_long_names_head_columns_by_what_tells_them_apart(runs):
    first = (runs / "orig").rename(runs / "svhn-resnet18-harp-orig-90-keep0.05-fold0-s0-045c95db")
    second = (runs / "s2ap").rename(runs / "svhn-resnet18-harp-s2ap-plain-90-keep0.05-fold0-s0-a7fa7034")
    said, *lines = compare(first, second).output.splitlines()
    assert (said, lines[0]) == (f"orig: {first.name}", f"s2ap-plain: {second.name}")
    heading = [line for line in lines if line.startswith("┃")]
    assert len(heading) <= 2
    assert not any("svhn" in line for line in heading)
    (found,) = records(compare(first, second, "--json", "-"))
    assert found["arms"] == [first.name, second.name]


def test_each_setting_is_compared_and_p_is_corrected_for_their_number(runs, tmp_path):
    for arm in ROBUST:
        shutil.copytree(runs / arm, runs / "more" / arm)
        for run in (runs / "more" / arm).iterdir():
            changed(run, method={"keep": 0.2})
    first, second = records(compare(runs, "--arm", "orig", "--arm", "s2ap", "--json", "-"))
    assert {one["setting"].split()[-1] for one in (first, second)} == {"0.2", "0.3"}
    for one in (first, second):
        metric = one["metrics"]["finetuned_robust"]
        assert metric["adjusted_p"] == pytest.approx(min(1, 2 * metric["p"]))


def test_two_seeds_of_a_fold_are_one_unit_of_every_metric(runs):
    for arm in ROBUST:
        for seed in SEEDS:
            changed(runs / arm / str(seed), data={"options": {"fold": seed % 3}})
            evaluated(runs / arm / str(seed), ROBUST[arm][seed], fold=seed % 3)
    (compared,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    ratios = np.log10(LAMBDA["s2ap"] / LAMBDA["orig"])
    by_fold = [np.mean([ratios[seed] for seed in SEEDS if seed % 3 == fold]) for fold in range(3)]
    assert compared["metrics"]["finetuned_robust"]["seeds"] == compared["metrics"]["lambda_max"]["seeds"] == 3
    assert compared["metrics"]["lambda_max"]["difference"] == pytest.approx(np.mean(by_fold))
    assert compared["metrics"]["lambda_max"]["p"] == pytest.approx(ttest_1samp(by_fold, 0).pvalue)
    assert set(compared["metrics"]["finetuned_robust"]["mcnemar"]) == {"0/0", "1/1", "2/2", "3/0", "4/1"}


def test_seeds_that_are_all_tested_on_one_fold_are_units_of_every_metric(runs):
    for arm in ROBUST:
        for seed in SEEDS:
            changed(runs / arm / str(seed), data={"options": {"fold": 0}})
            evaluated(runs / arm / str(seed), ROBUST[arm][seed], fold=0)
    (compared,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    assert {metric["seeds"] for metric in compared["metrics"].values()} == {len(SEEDS)}


def test_a_folder_of_both_arms_is_told_apart_by_what_the_refusal_says(runs):
    result = compare(runs / "orig", runs)
    assert result.exit_code == 2
    assert "as with --where minimizer.name=s2ap" in result.stderr
    (compared,) = records(compare(runs / "orig", runs, "--where", "minimizer.name=none", "--json", "-"))
    assert compared["metrics"]["finetuned_robust"]["difference"] == 0


def test_words_follow_the_numbers(runs):
    said = compare(runs / "orig", runs / "s2ap").stdout
    assert "finetuned_robust: s2ap is better beyond chance, +" in said
    assert "lambda_max_live: undecided with 5 seeds, ×" in said
    for seed in (2, 3, 4):
        shutil.rmtree(runs / "s2ap" / str(seed))
    said = compare(runs / "orig", runs / "s2ap").stdout
    assert "two seeds say nothing of the arms" in said
    assert "beyond chance" not in said


def test_a_single_pair_says_whether_the_networks_differ(runs):
    for arm, right in (("orig", 20), ("s2ap", 60)):
        evaluated(runs / arm / "0", np.arange(IMAGES) < right)
    said = compare(runs / "orig/0", runs / "s2ap/0").stdout
    assert "one seed says nothing of the arms; the two networks of a seed differ (McNemar)" in said


@pytest.mark.parametrize(
    ("about", "word"),
    [({"attack": "autoattack"}, "attack pgd-50 and autoattack"), ({"eps": "1/255"}, "eps 32/255 and 1/255")],
)
def test_evaluations_under_other_attacks_are_refused(runs, about, word):
    file = runs / "s2ap/0/evals/finetune.npz"
    kept = dict(np.load(file))
    kept["about"] = np.array(json.dumps({**load_evaluation(file).about, **about}))
    np.savez(file, **kept)
    result = compare(runs / "orig", runs / "s2ap")
    assert result.exit_code == 2
    assert word in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_sharpness_that_was_measured_otherwise_is_left_out_with_the_reason(runs):
    (runs / "s2ap/0/sharpness.json").write_text(sharpness(1.0, batch_norm="batch"))
    (found,) = records(compare(runs / "orig", runs / "s2ap", "--json", "-"))
    assert "lambda_max" not in found["metrics"]
    assert "finetuned_robust" in found["metrics"]
    assert "lambda_max: not compared: batch_norm is running and batch; measure both alike" in found["notes"]


def test_whatever_is_beyond_chance_is_put_into_words(runs):
    for seed in SEEDS:  # half as large in each seed, which no chance does
        (runs / "s2ap" / str(seed) / "sharpness.json").write_text(sharpness(LAMBDA["orig"][seed] * (0.5 + 0.01 * seed)))
    said = compare(runs / "orig", runs / "s2ap").stdout.splitlines()
    assert [line.split(":")[0].strip() for line in said if "s2ap is better beyond chance" in line] == [
        "finetuned_robust",
        "lambda_max_live",
        "lambda_max",
    ]
    assert not any(line.strip().startswith("finetuned_clean:") for line in said)  # the same in both arms


def test_what_sharpness_was_measured_on_is_said_since_it_depends_on_that(runs):
    """`sharpness` at its own defaults reads other values of the same checkpoints."""
    said = compare(runs / "orig", runs / "s2ap").stdout.splitlines()
    assert "  lambda_max_live, lambda_max: on 1 x 8 images, BatchNorm running" in said
    assert "  loss_difference: on 1 x 8 images, BatchNorm running, 3 x 20 steps of exchange" in said


def test_what_cannot_be_paired_is_refused_in_a_line(runs, tmp_path):
    refused = {
        (runs / "orig",): "give two runs or folders",
        (runs, runs / "orig"): "twice; leave one out",
        (runs, "--arm", "orig", "--arm", "awp"): "awp: no finished run",
        (runs, "--arm", "orig", "--arm", "sap"): "sap: no finished run of it; did you mean s2ap?",
        (runs / "orig", runs / "s2ap", "--where", "gamma=1"): "--where gamma=1",
        (runs / "orig/0", runs / "s2ap/1"): "no seed in common",
        (runs / "orig", tmp_path / "none"): "no such folder",
    }
    for arguments, word in refused.items():
        result = compare(*arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), arguments
        assert word in result.stderr
    changed(runs / "s2ap/1", seed=0, minimizer={"gamma": 0.03})
    evaluated(runs / "s2ap/1", ROBUST["s2ap"][1], fold=0)
    result = compare(runs / "orig", runs / "s2ap")
    assert "--where minimizer.gamma=0.03" in result.stderr
    (found,) = records(compare(runs / "orig", runs / "s2ap", "--where", "minimizer.gamma=0.03", "--json", "-"))
    assert found["seeds"] == [0]
    changed(runs / "s2ap/1", method={"keep": 0.5})
    with pytest.raises(InputError, match="share no setting"):
        compare_arms([open_run(runs / "orig/1")], [open_run(runs / "s2ap/1")])


def test_the_picture_has_each_seed_and_the_interval(runs, monkeypatch, tmp_path):
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "Figure", lambda **options: figures.append(Figure(**options)) or figures[-1])
    compared = compare_arms(*([open_run(runs / arm / str(seed)) for seed in SEEDS] for arm in ROBUST))
    forest.draw(compared, ("orig", "s2ap"), tmp_path / "forest.png")
    (panel,) = [axes for axes in figures[0].axes if axes.get_title() == "finetuned robust"]
    seeds, interval, mean, _zero = panel.get_lines()
    accuracy = {arm: 100 * robust.mean(axis=1) for arm, robust in ROBUST.items()}
    assert seeds.get_xdata() == pytest.approx(accuracy["s2ap"] - accuracy["orig"])
    low, high = ttest_rel(accuracy["s2ap"], accuracy["orig"]).confidence_interval()
    assert interval.get_xdata() == pytest.approx([low, high])
    assert mean.get_markerfacecolor() == plots.COLORS[0]  # beyond chance
    (panel,) = [axes for axes in figures[0].axes if axes.get_title() == "lambda max live"]
    assert panel.get_lines()[2].get_markerfacecolor() == "white"
