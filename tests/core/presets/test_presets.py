"""The presets against the paper: its printed tables (figures.reference) and the settings of Sect. 4.1 and App. A."""

from fractions import Fraction

import numpy as np
import pytest

from figures.reference import load
from s2ap_core.data import DATASETS
from s2ap_core.errors import InputError
from s2ap_core.methods import METHODS
from s2ap_core.models import NETWORKS
from s2ap_core.presets.compose import presets
from s2ap_core.presets.read import override, read_config
from s2ap_core.training.objectives import OBJECTIVES

TABLES = (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12)

# Sect. 4.1, "S2AP Setup".
GAMMA = {
    ("cifar10", "resnet18"): 0.001,
    ("cifar10", "wrn_28_4"): 0.001,
    ("cifar10", "vgg16_bn"): 0.0025,
    ("svhn", "vgg16_bn"): 0.0025,
    ("svhn", "resnet18"): 0.0075,
    ("svhn", "wrn_28_4"): 0.005,
    ("imagenet", "resnet50"): 0.0075,
    ("cifar10", "vit"): 0.0025,
}


def cells(table):
    """The runs of which a table prints a result, as rows with the table's own words; an axis it lacks is None."""
    axes = ["dataset", "network", "method", "minimizer", "sparsity", "flops_reduction"]
    numbers = load(f"table{table}")
    rows = numbers[numbers["metric"] != "gap"][axes].drop_duplicates()
    return rows.replace({np.nan: None}).to_dict("records")


def name(table, cell):
    """What the run of a cell is called."""
    dataset = cell["dataset"].removesuffix("c") if table == 11 else cell["dataset"]
    if table == 6:
        return f"dense-{dataset}-{cell['network']}"
    method = f"{cell['method']}-channels" if table == 9 else cell["method"]
    amount = f"{cell['flops_reduction']:.0f}x" if table == 9 else f"{cell['sparsity']:.0f}"
    prefix = "clean-" if table == 10 else ""
    return f"{prefix}{dataset}-{cell['network']}-{method}-{cell['minimizer']}-{amount}"


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_a_table_has_a_preset_that_says_what_it_is(table):
    for cell in cells(table):
        config = read_config(name(table, cell))
        dataset = "cifar10" if table == 11 else cell["dataset"]
        assert (config.data.name, config.network.name) == (dataset, cell["network"])
        if cell["minimizer"] in ("s2ap", "awp"):
            assert config.minimizer.gamma == GAMMA[dataset, cell["network"]]
        if table == 6:
            assert config.evaluation.stages == ["pretrain"]
            continue
        assert config.minimizer.name == {"orig": "none"}.get(cell["minimizer"], cell["minimizer"])
        assert config.method.name == (f"{cell['method']}-channels" if table == 9 else cell["method"])
        if table == 9:
            assert config.method.flops_reduction == cell["flops_reduction"]
        else:
            assert config.method.keep == pytest.approx(1 - cell["sparsity"] / 100)
        # What the table prints is evaluated.
        raw = table in (5, 8, 12)
        assert ("prune" if raw else "finetune") in config.evaluation.stages
        # Sect. 4.2: the network found by S2AP is finetuned with AWP (Algorithm 2), that of Orig. is not.
        if not raw:
            assert config.finetune.awp == (cell["minimizer"] == "s2ap")
            assert config.finetune.gamma in (None, config.minimizer.gamma)


@pytest.mark.parametrize("table", TABLES)
def test_the_presets_of_a_table_are_its_cells_and_say_so(table):
    found = {preset.name for preset in presets().values() if table in preset.tables}
    assert found == {name(table, cell) for cell in cells(table)}
    for preset in found:
        numbers = presets()[preset].title.partition("Table")[2].strip("s )").split(", ")
        assert str(table) in numbers, presets()[preset].title


def test_every_preset_is_a_config_of_known_parts():
    for preset in presets():
        config = read_config(preset)
        assert config.title
        assert config.data.name in DATASETS
        assert config.network.name in NETWORKS
        assert config.objective.name in OBJECTIVES
        assert config.method.name in METHODS


@pytest.mark.parametrize("table", [1, 2, 3, 4, 9, 10])
def test_both_crossed_arms_stand_beside_each_cell(table):
    """S2AP's column changes the mask and the finetuning: each crossed arm differs from it by one of them."""
    for cell in cells(table):
        if cell["minimizer"] == "s2ap":
            s2ap = read_config(name(table, cell))
            plain = read_config(name(table, {**cell, "minimizer": "s2ap-plain"}))
            orig = read_config(name(table, {**cell, "minimizer": "orig-awp"}))
            assert plain == override(s2ap, ("finetune.awp=false", f"title={plain.title!r}"), "plain")
            assert orig == override(s2ap, ('minimizer.name="none"', f"title={orig.title!r}"), "orig")


def test_the_paper_s_setup_on_small_images():
    """Sect. 4.1."""
    for preset in presets().values():
        config = read_config(preset.name)
        if not {1, 2, 3, 5, 9} & set(preset.tables):
            continue
        threat = config.objective
        assert (threat.name, threat.eps, threat.step, threat.steps) == (
            "trades",
            Fraction(8, 255),
            Fraction(2, 255),
            10,
        )
        assert (config.pretrain.epochs, config.prune.epochs, config.finetune.epochs) == (100, 20, 100)
        assert config.minimizer.warmup == 5
        stages = (config.pretrain, config.prune, config.finetune)
        if config.network.name == "vit":  # as transformers are trained, see paper_settings.toml
            assert {(s.optimizer, s.lr_step, s.clip) for s in stages} == {("adamw", "iteration", 1.0)}
        else:
            assert [s.lr for s in stages] == [0.1, 0.1, 0.01]
            assert {(s.optimizer, s.lr_step, s.lr_warmup, s.clip) for s in stages} == {("sgd", "epoch", 0, None)}
        assert {s.batch_size for s in (config.pretrain, config.prune, config.finetune)} == {128}
        assert config.evaluation.attack == "autoattack"
        assert config.evaluation.stages == ["prune", "finetune"]  # the dense network is Table 6's preset
        assert config.pretrain.checkpoint is None


def test_imagenet_prunes_a_given_network_by_fast_adversarial_training():
    """App. A.1: 5 + 5 epochs of search, 25 of finetuning; the network was trained for 4/255."""
    for cell in cells(4):
        config = read_config(name(4, cell))
        assert (config.objective.name, config.objective.eps) == ("fast-at", Fraction(4, 255))
        assert (config.prune.epochs, config.minimizer.warmup, config.finetune.epochs) == (10, 5, 25)
        assert config.pretrain.checkpoint is not None
        assert {s.batch_size for s in (config.prune, config.finetune)} == {256}
        assert {s.weight_decay for s in (config.prune, config.finetune)} == {1e-4}
        assert config.method.name == "hydra" or config.method.penalty == 0.1


def test_rlth_searches_in_a_network_without_affine_norms_and_ends_there():
    for cell in cells(8):
        config = read_config(name(8, cell))
        assert not config.network.norm_affine
        assert config.prune.epochs == 20
        assert config.evaluation.stages == ["prune"]


def test_clean_pruning_has_no_adversary():
    for cell in cells(10):
        config = read_config(name(10, cell))
        assert (config.objective.name, config.evaluation.attack) == ("clean", "none")


def test_an_unknown_preset_suggests_its_neighbours():
    with pytest.raises(InputError, match="cifar10-vgg16_bn-harp-s2ap-90"):
        read_config("cifar10-vgg16-harp-s2ap-90")
    with pytest.raises(InputError, match="run --list"):
        read_config("nothing like it")


def test_overrides_go_on_top_of_a_preset_and_leave_it_alone():
    changed = read_config("cifar10-resnet18-harp-s2ap-90", ("method.keep=0.3", "finetune.awp=false"))
    assert (changed.method.keep, changed.finetune.awp, changed.minimizer.name) == (0.3, False, "s2ap")
    assert read_config("cifar10-resnet18-harp-s2ap-90").method.keep == 0.1
