"""`s2ap-diag run PRESET --scale digits`, and `--list`."""

import json
import tomllib
from fractions import Fraction

import pytest
from click.testing import CliRunner

from s2ap_core.config import parse_config
from s2ap_core.models import NETWORKS, build
from s2ap_core.presets.compose import presets
from s2ap_core.presets.read import read_config
from s2ap_core.presets.scale import scale_to_digits
from s2ap_diag.commands import main
from s2ap_diag.sweep.grid import Combinations, Grid, expand
from tests.reading import masks_in

SHORT = ("objective.steps=1", 'evaluation.attack="pgd-50"', "evaluation.n=8")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(out, preset, *settings):
    result = invoke("run", preset, "--scale", "digits", "--out", out, *(f"--set={s}" for s in (*SHORT, *settings)))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def density(out, epoch):
    masks = masks_in(out / "masks" / f"epoch-{epoch:03d}.safetensors").values()
    return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


def test_what_a_run_is_about_stays_and_only_its_size_changes():
    sizes = {"epochs", "batch_size", "warmup", "width", "n", "penalty", "attack", "eps", "step", "steps", "checkpoint"}
    for full in map(read_config, presets()):
        small = scale_to_digits(full)
        assert small == parse_config(tomllib.loads(small.to_toml()), "scaled")  # what a resumed run reads
        for section in ("minimizer", "method", "objective", "pretrain", "prune", "finetune", "network", "evaluation"):
            before, after = getattr(full, section).model_dump(), getattr(small, section).model_dump()
            steps = {"lr", "lr_warmup", "momentum"} if full.network.name == "vit" else set()  # it takes larger ones
            assert {key for key in before if before[key] != after[key]} <= sizes | steps, (full.title, section)
        assert small.data.name == "digits"
        assert (small.objective.eps, small.objective.step) == (Fraction(32, 255), Fraction(8, 255))
        assert small.objective.steps * small.objective.step > small.objective.eps
        assert small.evaluation.n == full.evaluation.n
        assert small.evaluation.attack == {"autoattack": "apgd"}.get(full.evaluation.attack, full.evaluation.attack)
        assert small.minimizer.warmup < small.prune.epochs < full.prune.epochs
        assert small.pretrain.checkpoint is None
        assert small.title.startswith(full.title)
        assert "digits" in small.title


@pytest.mark.parametrize(("norm", "radius", "step"), [("L2", "1/2", "2/5"), ("L1", "3/2", "6/5")])
def test_a_norm_that_is_set_gets_the_digits_radius_of_it_and_overrides_are_on_top(norm, radius, step):
    name, chosen = "cifar10-resnet18-hydra-s2ap-90", f"objective.norm={norm}"
    small = read_config(name, (chosen,), change=scale_to_digits).objective
    assert (small.norm, small.eps, small.step, small.steps) == (norm, Fraction(radius), Fraction(step), 5)
    assert read_config(name, ("objective.eps=1/4", chosen), change=scale_to_digits).objective.eps == Fraction(1, 4)
    group = Combinations(presets=[name], scale="digits", values={"objective.norm": [norm, "Linf"]})
    planned = [run.config.objective for run in expand(Grid(group=[group]))]
    assert [(o.norm, o.eps) for o in planned] == [(norm, Fraction(radius)), ("Linf", Fraction(32, 255))]


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn_28_4", "resnet50", "vit"])
def test_every_network_is_narrower_than_published(name):
    preset = next(p.name for p in presets().values() if p.settings["network"]["name"] == name and p.tables)
    width = scale_to_digits(read_config(preset)).network.width
    small, full = (build(name, width=w, input_size=8, input_channels=1) for w in (width, None))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in full.parameters()) / 20
    assert name in NETWORKS


def test_fewer_images_than_asked_for_are_not_made_more():
    few = read_config("cifar10-resnet18-harp-s2ap-90", ("evaluation.n=16",))
    assert scale_to_digits(few).evaluation.n == 16


def test_harp_reaches_its_target_by_two_thirds_of_the_search(tmp_path):
    run(tmp_path / "r", "cifar10-vgg16_bn-harp-orig-95", "pretrain.epochs=3", 'evaluation.stages=["prune"]')
    assert density(tmp_path / "r", 0) > 0.09  # it starts at 0.1 in every layer
    assert density(tmp_path / "r", 6) <= 0.05
    assert json.loads((tmp_path / "r" / "results.json").read_text())["prune"]["selected_epoch"] is not None


def test_a_scaled_run_says_so_and_takes_what_is_set(tmp_path):
    out = tmp_path / "r"
    result = run(
        out, "svhn-wrn_28_4-hydra-s2ap-80", "pretrain.epochs=1", "prune.epochs=1", "finetune.epochs=1",
        "network.width=2", "minimizer.warmup=0",
    )  # fmt: skip
    assert "on digits" in result.stderr
    written = tomllib.loads((out / "config.toml").read_text())
    assert written["data"]["name"] == "digits"
    assert written["network"]["width"] == 2
    assert (written["minimizer"]["name"], written["minimizer"]["gamma"]) == ("s2ap", 0.005)
    assert density(out, 1) == pytest.approx(0.2, abs=0.01)
    results = json.loads((out / "results.json").read_text())
    assert {"evaluate-prune", "evaluate-finetune"} <= results.keys()
    assert results["evaluate-finetune"]["eps"] == "32/255"


def test_training_goes_as_far_as_what_is_evaluated_needs(tmp_path):
    """Tables 6 and 8: dense networks are not pruned, scratch tickets are neither trained nor finetuned."""
    run(tmp_path / "dense", "dense-svhn-vgg16_bn", "pretrain.epochs=1")
    assert json.loads((tmp_path / "dense" / "results.json").read_text()).keys() == {"pretrain", "evaluate-pretrain"}
    run(tmp_path / "rlth", "cifar10-vgg16_bn-rlth-orig-90", "prune.epochs=1")
    results = json.loads((tmp_path / "rlth" / "results.json").read_text())
    assert results["pretrain"] == {"epochs": 0}
    assert results.keys() == {"pretrain", "prune", "evaluate-prune"}


def test_clean_pruning_reports_no_robust_accuracy(tmp_path):
    stages = ("pretrain.epochs=1", "prune.epochs=1", 'evaluation.stages=["prune"]')
    sets = (f"--set={setting}" for setting in (*stages, 'evaluation.attack="none"', "evaluation.n=8"))
    preset = "clean-cifar10-vgg16_bn-hydra-orig-80"
    result = invoke("run", preset, "--scale", "digits", "--out", tmp_path / "r", *sets)
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "r" / "results.json").read_text())["evaluate-prune"]
    assert "clean_accuracy" in found
    assert "robust_accuracy" not in found


def test_the_list_names_every_preset_in_a_few_lines_and_describes_those_asked_for():
    overview = invoke("run", "--list").stdout
    assert len(overview.splitlines()) < len(presets()) / 10
    assert "cifar10-{resnet18,vgg16_bn,wrn_28_4}-" in overview
    some = invoke("run", "--list", "svhn-*-hydra-s2ap-9?").stdout
    assert sum("│ svhn-" in line for line in some.splitlines()) == 9
    assert "SVHN, 99 % sparsity" in some
    ninth = invoke("run", "--list", "table9").stdout
    assert "cifar10-resnet18-hydra-channels-s2ap-4x" in ninth
    assert "rlth" not in ninth
    nothing = invoke("run", "--list", "lenet")
    assert nothing.exit_code == 2
    assert "--list lenet" in nothing.stderr


def test_a_resumed_run_takes_no_other_settings(tmp_path):
    result = invoke("run", "--resume", "--out", tmp_path, "--scale", "digits")
    assert result.exit_code == 2
    assert "CONFIG" in result.stderr
