"""Conditions of finished runs: sound ones hold all, and each fault that is planted in a copy fails its own alone."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.evaluation import COLUMNS, Evaluation, load_evaluation
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.reading.results import save_sharpness
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness

pytestmark = pytest.mark.usefixtures("tiny_network")

ARMS = {
    "orig": {},
    "s2ap": {"minimizer": {"name": "s2ap", "gamma": 0.1, "warmup": 1}, "finetune": {"epochs": 4, "awp": True}},
}
SOUND = {
    "objective": {"eps": "8/255", "step": "4/255"},
    "pretrain": {"epochs": 12},
    "finetune": {"epochs": 4},
    "tracking": {"every": 1, "images": 8, "iterations": 2},
    "evaluation": {"n": 30, "batch_size": 30},
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tiny_network, new_run, data) -> Path:
    """Three seeds of both arms, tracked, the sharpness of one measured."""
    folder = tmp_path_factory.mktemp("sound")
    for arm, settings in ARMS.items():
        for seed in range(3):
            run = new_run(folder / f"{arm}-{seed}", seed=seed, **{**SOUND, **settings})
            Stages(run, data, callbacks=build_trackers(run.config.tracking), keep_checkpoints=1).all()
    checkpoint = load_checkpoint(folder / "s2ap-0/ckpt/prune-best.safetensors")
    settings = SharpnessSettings(rho=(), images=40, batch_size=40)
    save_sharpness(folder / "s2ap-0", measure_sharpness(checkpoint, data, run.config.objective, settings))
    return folder


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy of a run to damage, alone."""
    return Path(shutil.copytree(sound / "s2ap-0", tmp_path / "run"))


@pytest.fixture
def runs(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "runs"))


def check(*arguments: object) -> tuple[int, list[dict]]:
    result = CliRunner().invoke(main, ["check", *map(str, arguments), "--json", "-"])
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, json.loads(result.stdout)


def failures(*arguments: object) -> dict[str, dict]:
    """The findings that failed, by condition; the exit status says whether there are any."""
    status, findings = check(*arguments)
    failed = [finding for finding in findings if not finding["passed"]]
    assert status == (1 if failed else 0)
    for finding in failed:
        commands = re.findall(r"`s2ap-diag ([^`]+)`", finding["remedy"])
        assert commands
        for name, *words in map(shlex.split, commands):  # such a command, with such options
            import_module(f"s2ap_diag.commands.options.{name}").command.make_context(name, words)
    return {finding["condition"]: finding for finding in failed}


def evaluated(run: Path, change: Callable[[Evaluation], Evaluation], stage: str = "finetune") -> None:
    """Change what was found image by image, and the summary with it."""
    file = run / f"evals/{stage}.npz"
    found = change(load_evaluation(file))
    columns = {name: getattr(found, name) for name in COLUMNS}
    np.savez_compressed(file, about=np.array(json.dumps(found.about)), **columns)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, f"evaluate-{stage}": found.summary()}))


def measured(run: Path, metric: str, value: Callable[[pd.Series], pd.Series]) -> None:
    """Change what was read of the search."""
    table = pd.read_csv(run / "metrics.csv")
    chosen = table["metric"] == metric
    assert chosen.any()
    table.loc[chosen, "value"] = value(table.loc[chosen, "value"])
    table.to_csv(run / "metrics.csv", index=False)


def recorded(run: Path, **changes: object) -> None:
    """Change the record of the sharpness; what is None goes."""
    (record,) = json.loads((run / "sharpness.json").read_text())
    record = {key: value for key, value in {**record, **changes}.items() if value is not None}
    (run / "sharpness.json").write_text(json.dumps([record]))


def test_sound_runs_hold_every_condition(sound):
    status, findings = check(sound)
    assert [finding for finding in findings if not finding["passed"]] == []
    assert status == 0
    assert set(findings[0]) == {"run", "condition", "passed", "value", "limit", "remedy"}
    asked = {finding["condition"].partition(" (")[0] for finding in findings}
    assert asked == {
        *("flips", "eigenvalue", "dead share", "budget", "classes", "chance", "summary", "noise", "gradient"),
        *("robust above clean", "batch norm", "seeds", "alike"),
    }
    shown = CliRunner().invoke(main, ["check", str(sound)]).stdout
    assert f"{len(findings)} conditions on 6 runs hold" in shown


def test_one_run_is_told_that_it_is_one_seed_and_holds(run):
    status, findings = check(run)
    assert status == 0
    (told,) = [finding for finding in findings if finding["remedy"]]
    assert (told["condition"], told["value"], told["limit"]) == ("seeds", 1, 3)
    assert "--seed 1" in told["remedy"]


def test_a_perturbation_that_flips_nothing_after_the_warmup(run):
    measured(run, "perturbation_flips", lambda value: 0 * value)
    with (run / "metrics.csv").open("a") as metrics:
        metrics.write("prune,1,,perturbation_flips,7\n")  # in the warm-up
    (failed,) = failures(run).items()
    assert failed[0] == "flips"
    assert "--set minimizer.gamma=1 " in failed[1]["remedy"]


@pytest.mark.parametrize("damage", [{"converged": False}, {"residual": 0.2}, {"residual_live": float("nan")}])
def test_an_eigenvalue_that_has_not_converged(run, damage):
    recorded(run, **damage)
    (failed,) = failures(run).items()
    assert failed[0] == "eigenvalue"
    assert "s2ap-diag sharpness" in failed[1]["remedy"]


def test_an_eigenvalue_of_dead_channels_fails_where_that_of_live_ones_is_missing(run):
    recorded(run, dead_share=0.9)
    _, findings = check(run)
    (told,) = [finding for finding in findings if finding["condition"] == "dead share"]
    assert (told["passed"], told["value"]) == (True, 0.9)
    assert "read lambda_max_live" in told["remedy"]
    recorded(run, lambda_max_live=None)
    assert set(failures(run)) == {"dead share"}


def test_a_mask_that_keeps_one_weight_more(run):
    file = run / "ckpt/finetune-best.safetensors"
    tensors, header = load_tensors(file)
    name = next(name for name in tensors if name.endswith("mask"))
    more = tensors[name].clone()
    more[tuple((more == 0).nonzero()[0])] = 1
    save_tensors(file, {**tensors, name: more}, header)
    (failed,) = failures(run).items()
    assert failed[0] == "budget"
    assert failed[1]["value"] > 0.3


def test_channels_that_keep_more_flops_than_asked_for(tmp_path, new_run, data):
    channels = {"name": "hydra-channels", "flops_reduction": 2}
    run = new_run(tmp_path / "run", **{**SOUND, "method": channels, "evaluation": {"stages": ["prune"], "n": 30}})
    Stages(run, data).all()
    assert "budget" not in failures(run.path)
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace("flops_reduction = 2.0", "flops_reduction = 4.0"))
    found = failures(run.path)["budget"]
    assert found["limit"] == 0.25 < found["value"] <= 0.5


def test_a_network_that_is_right_in_three_of_ten_classes(run):
    def collapse(found: Evaluation) -> Evaluation:
        right = found.label < 3
        return replace(found, clean=right, noise=right, robust=right & (found.label < 2))

    evaluated(run, collapse)
    assert set(failures(run)) == {"classes (finetune)"}


def test_a_clean_accuracy_that_may_be_chance(run):
    def guess(found: Evaluation) -> Evaluation:
        right = np.arange(30) < 4
        return replace(found, clean=right, noise=right, robust=right)

    evaluated(run, guess, "prune")
    (failed,) = failures(run).items()
    assert failed[0] == "chance (prune)"
    assert "--set prune.epochs=6" in failed[1]["remedy"]


def test_an_attack_that_does_less_harm_than_noise(run):
    evaluated(run, lambda found: replace(found, noise=found.robust & (np.arange(30) % 2 == 0)))
    (failed,) = failures(run).items()
    assert failed[0] == "noise (finetune)"
    assert "--attack autoattack" in failed[1]["remedy"]


def test_images_without_a_gradient_blind_all_attacks_but_square(run):
    evaluated(run, lambda found: replace(found, zero_gradient=np.arange(30) < 6))
    (failed,) = failures(run).items()
    assert (failed[0], failed[1]["value"]) == ("gradient (finetune)", 0.2)
    evaluated(run, lambda found: replace(found, about={**found.about, "attack": "autoattack"}))
    assert failures(run) == {}


def test_robust_images_that_are_wrong_as_they_are(run):
    def swap(found: Evaluation) -> Evaluation:
        robust = np.arange(30) == 0
        return replace(found, clean=found.clean & ~robust, robust=robust, noise=found.noise | robust)

    evaluated(run, swap)
    assert set(failures(run)) == {"robust above clean (finetune)"}


def test_results_that_say_more_than_was_found(run):
    results = json.loads((run / "results.json").read_text())
    results["evaluate-finetune"]["robust_accuracy"] += 0.1
    (run / "results.json").write_text(json.dumps(results))
    assert set(failures(run)) == {"summary (finetune)"}


def test_modes_of_batch_norm_that_order_the_arms_in_opposite_ways(runs):
    for seed in range(3):
        for arm, running, batch in (("orig", 1, 2), ("s2ap", 2 + 0.1 * (seed - 1), 1 + 0.1 * (seed - 1))):
            for mode, value in (("running", running), ("batch", batch)):
                measured(runs / f"{arm}-{seed}", f"lambda_max_live_{mode}", lambda old, v=value: 0 * old + v)
    (failed,) = failures(runs).items()
    assert failed[0] == "batch norm"
    assert (failed[1]["value"], failed[1]["limit"]) == pytest.approx((-1, 1))
    measured(runs / "s2ap-2", "lambda_max_live_batch", lambda old: 0 * old + 30)  # within noise of either order
    assert failures(runs) == {}
    for seed in range(3):  # the same order in both
        measured(runs / f"s2ap-{seed}", "lambda_max_live_batch", lambda old: 0 * old + 3)
    assert failures(runs) == {}


def test_two_seeds_of_an_arm(runs):
    shutil.rmtree(runs / "orig-1")
    (failed,) = failures(runs).items()
    assert (failed[0], failed[1]["value"]) == ("seeds", 2)
    assert "orig" in failed[1]["run"]
    assert "--seed 3" in failed[1]["remedy"]


def test_three_seeds_that_the_other_arm_does_not_have(runs):
    for seed in range(3):
        config = runs / f"s2ap-{seed}/config.toml"
        config.write_text(config.read_text().replace(f"seed = {seed}", f"seed = {seed + 3}"))
    assert failures(runs)["seeds"]["value"] == 0


@pytest.mark.parametrize("difference", ["eps", "n"])
def test_an_arm_that_was_evaluated_otherwise(runs, difference):
    def other(found: Evaluation) -> Evaluation:
        if difference == "eps":
            return replace(found, about={**found.about, "eps": "4/255"})
        fewer = {name: getattr(found, name)[:29] for name in COLUMNS}
        return replace(found, **fewer)

    evaluated(runs / "s2ap-1", other)
    (failed,) = failures(runs).items()
    assert (failed[0], failed[1]["value"]) == ("alike (finetune)", 5)  # pairs: it with each of the others
    assert ("eps 8/255 and 4/255" if difference == "eps" else "30 and 29 images") in failed[1]["remedy"]


def test_a_run_that_is_half_done_and_one_that_is_damaged_fail_as_such(runs):
    (runs / "orig-0/results.json").unlink()
    (runs / "s2ap-0/evals/prune.npz").write_bytes(b"cut")
    _, findings = check(runs)
    told = {finding["run"]: finding["remedy"] for finding in findings if finding["condition"] == "complete"}
    assert {Path(path).name for path in told} == {"orig-0", "s2ap-0"}
    assert "--resume" in told[str(runs / "orig-0")]
    assert "prune.npz" in told[str(runs / "s2ap-0")]
    result = CliRunner().invoke(main, ["check", str(runs / "orig-0")])
    assert result.exit_code == 2
    assert "half done" in result.output
