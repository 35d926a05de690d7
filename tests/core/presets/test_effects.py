"""Settings that change nothing are refused where they are set, and those that are not refused change the run."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from s2ap_core.config import Config, parse_config
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.presets.compose import presets
from s2ap_core.presets.effects import without_effect
from s2ap_core.presets.read import overridden, read_config
from s2ap_core.presets.scale import scale_to_digits
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main
from s2ap_diag.commands.demo import planned_runs
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.sweep.grid import Combinations, Grid, expand

pytestmark = pytest.mark.usefixtures("tiny_network")

# Two iterations in an epoch and no attack on the result: runs of a fraction of a second.
COMMON: dict[str, Any] = {
    "network": {"name": "tiny"},
    "objective": {"eps": "32/255", "steps": 2},
    "pretrain": {"epochs": 1, "batch_size": 20},
    "prune": {"epochs": 2, "batch_size": 20},
    "finetune": {"epochs": 1, "batch_size": 20},
    "evaluation": {"attack": "none", "n": 8, "batch_size": 8},
}
TRACKED = {"every": 1, "iterations": 3, "images": 8}
S2AP = {"name": "s2ap", "gamma": 0.2, "warmup": 0}
GIVEN = "dense.safetensors"
BASES: dict[str, dict[str, dict[str, Any] | None]] = {
    "orig": {},
    "full": {
        "method": {"name": "harp", "penalty": 5.0, "rate_init": [0.9, 0.5, 0.3]},
        "minimizer": S2AP,
        "finetune": {"awp": True, "gamma": 0.1},
        "tracking": TRACKED,
    },
    "orig-awp": {"finetune": {"awp": True}, "minimizer": {"gamma": 0.2}},
    "rlth": {"method": {"name": "rlth"}, "network": {"norm_affine": False}, "pretrain": None, "finetune": None},
    "hydra-channels": {"method": {"name": "hydra-channels", "flops_reduction": 1.5}},
    "harp-channels": {"method": {"name": "harp-channels", "flops_reduction": 1.5, "penalty": 5.0}},
    "attacked": {"evaluation": {"attack": "pgd-50"}},
    "attacked-apart": {"evaluation": {"attack": "pgd-50", "eps": "1/2"}},
    "fast-at": {"objective": {"name": "fast-at"}},
    "pgd-at": {"objective": {"name": "pgd-at"}},
    "clean": {"objective": {"name": "clean"}},
    "unevaluated": {"evaluation": None},
    "frozen": {"minimizer": {"update": "normalized"}, "prune": {"freeze_norm": True}},
    "flips": {"minimizer": {**S2AP, "gamma": "flips"}},
    "rise": {"minimizer": {**S2AP, "gamma": "rise"}, "prune": {"epochs": 3}},
    "random": {"minimizer": {**S2AP, "direction": "random"}},
    "paper-tracking": {"tracking": {**TRACKED, "recipe": "paper"}},
    "given": {"pretrain": None},
    "tracked": {"tracking": TRACKED},
    "attack": {"minimizer": {**S2AP, "source": "attack"}},
    "shuffled": {"minimizer": {**S2AP, "direction": "shuffled"}},
    "group-norm": {"network": {"name": "tiny", "norm": "group"}, "tracking": TRACKED},
    "longer": {"pretrain": {"epochs": 2}, "finetune": {"epochs": 2}},
    "spectral": {"method": {"name": "hydra-spectral", "keep": 0.5}},
    "snip": {"method": {"name": "snip"}, "minimizer": {"gamma": 0.2}, "finetune": {"awp": True}},
    "taylor": {"method": {"name": "taylor"}},
    "unsearched": {"method": {"name": "harp"}, "prune": {"epochs": 0}},
    "undecayed": {stage: {"weight_decay": 0.0} for stage in ("pretrain", "prune", "finetune")},
}

TRAINING = {
    "epochs": 3, "optimizer": "adamw", "lr": 0.03, "lr_step": "iteration", "momentum": 0.5, "weight_decay": 0.02,
    "decay_norms": False, "clip": 0.01, "batch_size": 40,
}  # fmt: skip
EFFECTS: dict[str, tuple[str, Any]] = {
    "seed": ("orig", 1),
    "network.width": ("orig", 6),
    "network.norm_affine": ("orig", False),
    "network.norm": ("orig", "group"),
    "objective.name": ("orig", "mart"),
    "objective.beta": ("orig", 2.0),
    "objective.eps": ("orig", "1/255"),
    "objective.step": ("orig", "8/255"),
    "objective.steps": ("orig", 3),
    "method.name": ("orig", "rlth"),
    "method.keep": ("orig", 0.5),
    "method.keep_layers": ("orig", {"conv?": 0.5}),
    "method.only": ("orig", ["conv2"]),
    "method.skip": ("orig", ["linear"]),
    "method.penalty": ("full", 50.0),
    "method.rate_init": ("full", "target"),
    "method.tau": ("spectral", 0.9),
    "method.init": ("rlth", "kaiming"),
    "method.flops_reduction": ("hydra-channels", 3.0),
    "method.batches": ("snip", 1),
    "minimizer.name": ("full", "awp"),
    "minimizer.gamma": ("orig-awp", 0.4),
    "minimizer.warmup": ("full", 1),
    "minimizer.eta_z": ("full", 0.01),
    "minimizer.carry": ("full", True),
    "minimizer.source": ("full", "last"),
    "minimizer.direction": ("full", "reversed"),
    "minimizer.flips": ("flips", 0.2),
    "minimizer.rise": ("rise", 3.0),
    "minimizer.subset": ("full", 0.5),
    "minimizer.every": ("full", 2),
    "minimizer.update": ("orig", "normalized"),
    **{f"pretrain.{name}": ("orig", value) for name, value in TRAINING.items()},
    "pretrain.checkpoint": ("orig", GIVEN),
    **{f"prune.{name}": ("orig", value) for name, value in TRAINING.items()},
    **{f"{stage}.lr_warmup": ("longer", 1) for stage in ("pretrain", "prune", "finetune")},
    "prune.freeze_norm": ("orig", True),
    **{f"finetune.{name}": ("orig", value) for name, value in TRAINING.items()},
    "finetune.awp": ("orig", True),
    "finetune.gamma": ("full", 0.4),
    "evaluation.stages": ("orig", ["finetune"]),
    "evaluation.attack": ("orig", "pgd-50"),
    "evaluation.norm": ("attacked-apart", "L2"),
    "evaluation.eps": ("attacked", "1/255"),
    "evaluation.n": ("orig", 7),
    "tracking.metrics": ("full", []),
    "tracking.every": ("orig", 1),
    "tracking.recipe": ("full", "paper"),
    "tracking.iterations": ("full", 2),
    "tracking.tolerance": ("full", 5.0),
    "tracking.images": ("full", 4),
    "tracking.batch_norm": ("full", ["batch"]),
    "tracking.spectrum": ("full", ["live"]),
    "tracking.by_layer": ("full", True),
    "tracking.along_z": ("tracked", 0.2),
    "compute.precision": ("orig", "bfloat16"),
}
"""For each setting a config and a value that must change its run."""

ELSEWHERE = {
    "title", "network.name", "data.name", "data.root", "data.options",  # labels; network and images are given here
    "pretrain.select", "prune.select", "finetune.select",  # other epochs or not, as the losses come out
    "network.options", "method.options", "objective.options",  # of other people's parts
    "objective.norm",  # needs a radius and a step beside it: see below
    "evaluation.batch_size", "distributed.batch_norm",  # cost, and several processes
    "compute.deterministic",  # of a GPU
    "tracking.tensorboard",  # shows metrics.csv elsewhere: tests/diag/execution/test_tensorboard.py
    "method.embeddings",  # of networks that have some: tests/core/masks/test_choice.py
}  # fmt: skip

METHOD = "does not read it"
VOID: list[tuple[str, str, Any, str]] = [
    *(("orig", f"method.{k}", v, METHOD) for k, v in (("penalty", 1), ("rate_init", "target"), ("init", "kaiming"))),
    ("orig", "method.flops_reduction", 4.0, METHOD),
    ("full", "method.init", "kaiming", METHOD),
    ("orig", "method.tau", 0.5, METHOD),
    ("orig", "method.batches", 2, METHOD),
    *(
        (base, f"{section}.{name}", value, why)
        for base, why in (("taylor", "method.name = taylor does not search"), ("unsearched", "prune.epochs = 0"))
        for section, name, value in (
            *(("prune", name, value) for name, value in TRAINING.items() if name not in ("epochs", "batch_size")),
            ("prune", "freeze_norm", True), ("prune", "select", "last"), ("minimizer", "warmup", 1),
            ("minimizer", "update", "normalized"), ("minimizer", "gamma", 0.3), ("tracking", "every", 1),
        )
    ),
    ("taylor", "prune.epochs", 0, "does not search"),
    ("taylor", "prune.lr_warmup", 30, "does not search"),
    ("taylor", "minimizer.name", "s2ap", "does not search"),
    ("snip", "minimizer.name", "s2ap", "does not search"),
    ("unsearched", "method.penalty", 5.0, "prune.epochs = 0"),
    ("rlth", "method.penalty", 1.0, METHOD),
    *(("hydra-channels", f"method.{k}", v, METHOD) for k, v in (("keep", 0.5), ("penalty", 1), ("embeddings", True))),
    ("hydra-channels", "method.keep_layers", {"conv2": 0.5}, METHOD),
    *(("harp-channels", f"method.{k}", v, METHOD) for k, v in (("keep", 0.5), ("rate_init", "target"))),
    *(("fast-at", f"objective.{k}", v, METHOD) for k, v in (("beta", 2.0), ("step", "8/255"), ("steps", 3))),
    *(("clean", f"objective.{k}", v, METHOD) for k, v in (("beta", 2.0), ("step", "8/255"), ("steps", 3))),
    ("pgd-at", "objective.beta", 2.0, METHOD),
    ("orig", "minimizer.gamma", 0.3, "neither minimizer.name nor finetune.awp"),
    ("orig", "minimizer.eta_z", "lr", "minimizer.name = none"),
    ("orig", "minimizer.carry", True, "minimizer.name = none"),
    ("orig", "minimizer.source", "last", "minimizer.name = none"),
    ("orig", "minimizer.subset", 0.5, "minimizer.name = none"),
    ("orig", "minimizer.every", 2, "minimizer.name = none"),
    ("orig", "minimizer.direction", "random", "minimizer.name = none"),
    ("full", "minimizer.flips", 0.2, "minimizer.gamma = 0.2 does not read it"),
    ("flips", "minimizer.rise", 0.2, "minimizer.gamma = flips does not read it"),
    ("random", "minimizer.source", "last", "minimizer.direction = random is drawn"),
    ("random", "minimizer.subset", 0.5, "minimizer.direction = random is drawn"),
    ("shuffled", "minimizer.source", "momentum", "minimizer.direction = shuffled takes the last"),
    ("attack", "minimizer.subset", 0.5, "minimizer.source = attack makes no extra pass"),
    ("tracked", "tracking.by_layer", True, "neither a perturbation nor"),
    ("orig", "finetune.gamma", 0.3, "finetune.awp = false"),
    ("group-norm", "tracking.batch_norm", ["batch"], "network.norm = group has no BatchNorm, and one reading"),
    ("group-norm", "distributed.batch_norm", "local", "network.norm = group has no BatchNorm"),
    ("rlth", "prune.freeze_norm", True, "network.norm_affine = false"),
    ("frozen", "prune.momentum", 0.5, "minimizer.update = normalized"),
    ("frozen", "prune.weight_decay", 0.02, "minimizer.update = normalized"),
    ("frozen", "prune.decay_norms", False, "minimizer.update = normalized"),
    ("rlth", "prune.decay_norms", False, "neither biases nor"),
    *(
        ("undecayed", f"{stage}.decay_norms", False, f"{stage}.weight_decay = 0")
        for stage in ("pretrain", "prune", "finetune")
    ),
    *(("rlth", f"pretrain.{name}", value, "prunes untrained weights") for name, value in TRAINING.items()),
    *(("rlth", f"finetune.{name}", value, "does not finetune") for name, value in TRAINING.items()),
    ("rlth", "finetune.awp", True, "does not finetune"),
    *(("given", f"pretrain.{name}", value, "pretrain.checkpoint takes") for name, value in TRAINING.items()),
    ("clean", "evaluation.eps", "1/255", "evaluation.attack = none"),
    ("unevaluated", "evaluation.attack", "pgd-50", "evaluation.stages is empty"),
    ("unevaluated", "evaluation.n", 7, "evaluation.stages is empty"),
    *(
        ("orig", f"tracking.{name}", value, "tracking.every = 0")
        for name, value in (
            ("metrics", []), ("recipe", "paper"), ("iterations", 3), ("tolerance", 0.5), ("images", 4),
            ("batch_norm", ["batch"]),
        )
    ),
    ("paper-tracking", "tracking.tolerance", 5.0, "tracking.recipe = paper"),
    ("full", "tracking.along_z", 0.2, "minimizer.name = s2ap has a z of its own"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data, tiny_network) -> Path:
    """A folder with a config of each base, and a dense network that one of them is given."""
    path = tmp_path_factory.mktemp("effects")
    dense = RunDirectory.create(path / "dense", parse_config(COMMON | {"seed": 7}, "dense"), "cpu")
    Stages(dense, data).pretrain()
    dense.checkpoint("pretrain").rename(path / GIVEN)
    for name, sections in BASES.items():
        settings = {
            key: {**COMMON.get(key, {}), **(sections.get(key) or {})} for key in COMMON.keys() | sections.keys()
        }
        settings = {key: values for key, values in settings.items() if key not in sections or sections[key] is not None}
        if name == "given":
            settings["pretrain"] = {"checkpoint": str(path / GIVEN)}
        if name == "unevaluated":
            settings["evaluation"] = {"stages": []}
        if name in ("fast-at", "clean"):
            del settings["objective"]["steps"]
        if name in ("snip", "taylor"):
            del settings["prune"]["epochs"]
        (path / f"{name}.toml").write_text(tomli_w.dumps(settings))
    return path


def assignment(folder: Path, key: str, value: Any) -> str:
    value = str(folder / GIVEN) if value == GIVEN else value
    if isinstance(value, dict):  # tomli_w writes a table of its own
        return f"{key}={{{', '.join(f'{json.dumps(k)} = {v}' for k, v in value.items())}}}"
    return f"{key}={tomli_w.dumps({'v': value}).partition('=')[2].strip()}"


@pytest.fixture(scope="module")
def outcome(folder, data):
    """``outcome(config)``: all that a run of it leaves, but for times and its own description."""
    found: dict[str, Any] = {}

    def run(config: Config) -> Any:
        key = config.to_toml()
        if key not in found:
            directory = RunDirectory.create(folder / f"run{len(found)}", config, "cpu")
            Stages(directory, data, callbacks=build_trackers(config.tracking)).all()
            results = {
                stage: {k: v for k, v in entry.items() if k not in ("sha256", "checkpoint")}
                for stage, entry in directory.results().items()
            }
            tensors = [load_tensors(file)[0] for file in sorted(directory.path.rglob("*.safetensors"))]
            numbers = [{name: tensor.numpy().tobytes() for name, tensor in held.items()} for held in tensors]
            found[key] = json.dumps(results), (directory.path / "metrics.csv").read_bytes(), numbers
        return found[key]

    return run


def settings_of(config: Config) -> set[str]:
    sections = {name: value for name, value in config if hasattr(value, "model_fields_set")}
    return {f"{section}.{name}" for section, values in sections.items() for name in type(values).model_fields} | (
        type(config).model_fields.keys() - sections.keys()
    )


def test_each_setting_is_asked_what_it_changes():
    assert settings_of(Config()) == EFFECTS.keys() | ELSEWHERE


@pytest.mark.parametrize("key", EFFECTS)
def test_a_setting_that_is_accepted_changes_the_run(key, folder, outcome):
    base, value = EFFECTS[key]
    file = folder / f"{base}.toml"
    changed = read_config(file, (assignment(folder, key, value),))
    assert outcome(changed) != outcome(read_config(file))


def test_the_same_radius_and_step_in_each_norm_are_another_run(folder, outcome):
    found = [
        outcome(
            read_config(folder / "attacked.toml", (f"objective={{norm='{norm}', eps='1/2', step='1/8', steps=2}}",))
        )
        for norm in ("Linf", "L2", "L1")
    ]
    evaluated = [json.loads(results)["evaluate-finetune"] for results, _, _ in found]
    assert [(entry["norm"], entry["eps"]) for entry in evaluated] == [(norm, "1/2") for norm in ("Linf", "L2", "L1")]
    masks = [numbers for _, _, numbers in found]
    assert masks[0] != masks[1] != masks[2] != masks[0]


@pytest.mark.parametrize(("base", "key", "value", "why"), VOID)
def test_a_setting_without_effect_is_refused_in_one_line_and_has_none(base, key, value, why, folder, outcome):
    file, asked = folder / f"{base}.toml", assignment(folder, key, value)
    with pytest.raises(InputError) as error:
        read_config(file, (asked,))
    line = str(error.value)
    assert line.startswith(f"{file}: {key} = ")
    assert why in line
    assert line.endswith("; leave it out")
    assert "\n" not in line
    assert outcome(overridden(read_config(file), (asked,), "as if it were none")) == outcome(read_config(file))


@pytest.mark.parametrize(("base", "key", "value", "why"), VOID)
def test_a_file_is_held_to_it_too_and_a_default_never_is(base, key, value, why, folder, tmp_path):
    file, (section, name) = tmp_path / "mine.toml", key.split(".")
    settings = tomllib.loads((folder / f"{base}.toml").read_text())
    default = Config().model_dump(mode="json")[section][name]
    for written in (value, default):
        settings.setdefault(section, {})[name] = written
        if written is not None:
            file.write_text(tomli_w.dumps(settings))
        if written == default:
            read_config(file if written is not None else folder / f"{base}.toml")
        else:
            with pytest.raises(InputError, match="has no effect"):
                read_config(file)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("minimizer.name=s2ap", "minimizer.warmup=15"), "s2ap has no effect: minimizer.warmup = 15 .* lower the one"),
        (("minimizer.name=awp", "prune.epochs=5"), "awp has no effect: minimizer.warmup = 5 leaves nothing of prune"),
        (("evaluation.norm=L2",), "evaluation.norm = L2 has no evaluation.eps"),
        (("evaluation.norm=L1", "evaluation.attack=apgd"), "evaluation.norm = L1 has no evaluation.eps"),
        (("method.name=rlth", 'evaluation.stages=["finetune"]'), "leaves nothing to evaluate"),
        (("data.root=/data",), "data.root = /data has no effect: data.name = digits"),
        (("network.name=vit", "distributed.batch_norm=local"), "vit has no BatchNorm"),
        (("network.name=vit", "network.norm=group"), "network.norm = group has no effect: network.name = vit has one"),
        (("evaluation={attack='none', norm='L2'}",), "evaluation.norm = L2 has no effect: evaluation.attack = none"),
    ],
)
def test_what_contradicts_itself_is_refused_by_every_command_that_runs(overrides, message, tmp_path):
    sets = [f"--set={override}" for override in overrides]
    for command in (["run", "digits", "--out"], ["sweep", str(grid_of(tmp_path, "digits")), "--runs"]):
        found = CliRunner().invoke(main, [*command, str(tmp_path / "out"), *sets])
        assert found.exit_code == 2, found.output
        (line,) = found.stderr.splitlines()
        with pytest.raises(InputError, match=message) as error:
            read_config("digits", overrides)
        assert str(error.value) in line
        assert not (tmp_path / "out").exists()


def grid_of(folder: Path, *names: str) -> Path:
    file = folder / "grid.toml"
    file.write_text(tomli_w.dumps({"group": [{"presets": list(names), "sharpness": False}]}))
    return file


# --- what is not set by the user ---


def test_what_a_preset_sets_and_an_override_makes_void_is_left_at_its_default():
    before = read_config("digits").objective
    after = read_config("digits", ("objective.name=fast-at",)).objective
    assert (before.step, after.step, after.eps) == (before.step, type(after)().step, before.eps)
    assert before.step != after.step
    # A preset's gamma is there for whoever perturbs.
    name = "svhn-resnet18-hydra-orig-90"
    assert read_config(name, ("minimizer.name=s2ap",)).minimizer.gamma == 0.0075
    assert read_config(name).minimizer == type(read_config(name).minimizer)()


def test_presets_full_and_scaled_and_the_demos_arms_have_effect_alone():
    for change in (lambda full: full, scale_to_digits):
        for name in presets():
            assert not without_effect(read_config(name, change=change)), name
    for quick in (False, True):
        planned_runs(quick, seed=0)


def test_a_grids_value_needs_to_have_an_effect_in_one_of_its_runs():
    arms = [f"svhn-resnet18-hydra-{arm}-90" for arm in ("orig", "s2ap")]
    both = Combinations(presets=arms, values={"minimizer.gamma": [0.1, 0.2]})
    runs = expand(Grid(group=[both]))
    # Orig. is run once, and its name does not speak of a gamma.
    assert [(r.config.minimizer.name, r.config.minimizer.gamma) for r in runs] == [
        ("none", 0.001), ("s2ap", 0.1), ("s2ap", 0.2),
    ]  # fmt: skip
    assert ["gamma" in r.name for r in runs] == [False, True, True]
    orig = Combinations(presets=arms[:1], set={"minimizer.gamma": 0.1})
    for grid in (Grid(group=[both, orig]), Grid(group=[orig])):
        with pytest.raises(InputError, match=r"orig-90: minimizer.gamma = 0.1 has no effect: .*; leave it out"):
            expand(grid)
    with pytest.raises(InputError, match=r"method.init = kaiming has no effect"):
        expand(Grid(set={"method.init": "kaiming"}, group=[both]))
    with pytest.raises(InputError, match=r"method.init = kaiming has no effect"):
        expand(Grid(group=[both]), overrides=("method.init=kaiming",))


# --- runs that are there already ---


def test_a_run_of_before_is_not_gone_on_with_but_can_be_read(new_run, tmp_path):
    old = {"minimizer": {"name": "s2ap", "warmup": 3}, "prune": {"epochs": 3}}
    for name, sections, said in (
        ("warmup", old, "minimizer.name = s2ap has no effect: minimizer.warmup = 3 leaves nothing of prune.epochs = 3"),
        ("void", {"method": {"penalty": 2.0}}, "method.penalty = 2.0 has no effect: method.name = hydra"),
    ):
        run = new_run(tmp_path / name, data={"name": "digits"}, **sections)
        before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
        found = CliRunner().invoke(main, ["run", "--resume", "--out", str(run.path)])
        assert found.exit_code == 2
        (line,) = found.stderr.splitlines()
        assert f"{run.path / 'config.toml'}: {said}" in line
        assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
        assert RunDirectory.open(run.path).config == run.config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attack", "none", "--eps", "8/255"], "--norm and --eps have no effect"),
        (["--attack", "none", "--norm", "L1"], "--norm and --eps have no effect"),
    ],
)
def test_evaluate_refuses_a_radius_without_an_attack(options, said, tmp_path):
    found = CliRunner().invoke(main, ["evaluate", str(tmp_path), *options])
    assert found.exit_code == 2
    assert said in found.stderr


def test_evaluate_asks_for_a_radius_of_another_norm_than_the_training_s(folder):
    found = CliRunner().invoke(main, ["evaluate", str(folder / GIVEN), "--dataset", "digits", "--norm", "L2"])
    assert found.exit_code == 2
    assert "--norm L2 needs --eps, such as 0.5: the training's radius is that of Linf" in found.stderr
