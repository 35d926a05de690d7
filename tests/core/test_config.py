"""Settings: what does not fit is named in one line, what fits survives TOML."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from s2ap_core.config import Config, parse_config
from s2ap_core.errors import InputError
from s2ap_core.presets.compose import presets
from s2ap_core.presets.read import read_config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("method.keep=0", "method.keep: "),
        ("method.keep=1.2", "method.keep: "),
        ("method.keep=nan", "method.keep: "),
        ("method.keep=ten", "method.keep: .*got 'ten'"),
        ("method.penalty=-1", "method.penalty: "),
        ("objective.eps=-0.1", "objective.eps: "),
        ("objective.eps=256/255", "objective.eps: "),
        ("objective.eps=nan", "objective.eps: "),
        ("objective.eps=inf", "objective.eps: "),
        ("objective.eps=8/0", "objective.eps: .*such as 8/255"),
        ("objective.eps=true", "objective.eps: "),
        ("objective.steps=0", "objective.steps: "),
        ("minimizer.name='sam'", "minimizer.name: "),
        ("minimizer.gamma=0", "minimizer.gamma: "),
        ("minimizer.gamma=inf", "minimizer.gamma: "),
        ("minimizer.eta_z=-1", "minimizer.eta_z"),
        ("minimizer.eta_z=nan", "minimizer.eta_z"),
        ("minimizer.warmup=-1", "minimizer.warmup: "),
        ("prune.lr=nan", "prune.lr: "),
        ("prune.lr=inf", "prune.lr: "),
        ("prune.epochs=-1", "prune.epochs: "),
        ("prune.epochs=1.5", "prune.epochs: "),
        ("prune.momentum=1", "prune.momentum: "),
        ("prune.select='best'", "prune.select: "),
        ("prune.freeze=true", "prune.freeze: no such setting"),
        ("evaluation.stages=['prune', 'last']", "evaluation.stages.1: "),
        ("evaluation.n=0", "evaluation.n: "),
        ("sparsity=0.9", "sparsity: no such setting"),
        ("network.width=0", "network.width: "),
        ("seed=-1", "seed: "),
        ("method=3", "method: "),
        ("method", "--set method: write it as section.key=value"),
        ("=3", "--set =3: write it"),
        ("seed.deep=3", "--set seed.deep=3: seed is not a section"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, override, named):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(InputError, match=named) as error:
        read_config(file, (override,))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("--set", str(file)))


@pytest.mark.parametrize("override", ["method.penalty=inf", "evaluation.norm=L3", "objective.eps=9/8"])
def test_settings_that_cannot_be_meant_are_refused(tmp_path, override):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(InputError):
        read_config(file, (override,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "not valid TOML"),
        (b"\xff\xfe\x00s", "cannot be read as text"),
        (b"[prune]\nlearning_rate = 1\n", r"prune\.learning_rate: no such setting"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_config(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_what_is_neither_file_nor_preset():
    with pytest.raises(InputError, match="nowhere: neither a file nor a preset; "):
        read_config("nowhere")


def test_defaults_are_the_papers():
    config = Config()
    assert config.objective.model_dump() == {
        "name": "trades", "beta": 6, "norm": "Linf", "eps": "8/255", "step": "2/255", "steps": 10, "options": {},
    }  # fmt: skip
    for stage, epochs, lr in (("pretrain", 100, 0.1), ("prune", 20, 0.1), ("finetune", 100, 0.01)):
        found = getattr(config, stage)
        assert (found.epochs, found.lr, found.momentum, found.weight_decay) == (epochs, lr, 0.9, 5e-4)
        assert (found.batch_size, found.select) == (128, "robust-loss")
    printed = {"name": "none", "warmup": 5, "eta_z": math.inf, "carry": False, "update": "method"}
    assert config.minimizer.model_dump().items() >= printed.items()
    assert (config.evaluation.attack, config.evaluation.norm) == ("autoattack", None)


def test_the_training_s_norm_said_again_is_that_norm_followed():
    """As runs of before say it, so that they go on being of one setting."""
    for norm in ("Linf", "L2"):
        objective = {"norm": norm, "eps": "1/2", "step": "1/8"}
        followed, said = (
            parse_config({"objective": objective, "evaluation": {"n": 8} | more}, "test")
            for more in ({}, {"norm": norm})
        )
        assert followed == said
    other = parse_config({"objective": objective, "evaluation": {"norm": "Linf", "eps": "1/8"}}, "test")
    assert other.evaluation.norm == "Linf"


def test_another_norm_takes_a_radius_and_a_step_of_its_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[objective]\neps = '4/255'\nstep = '1/255'\n")
    for overrides, named in (
        (("objective.norm=L2",), "objective.norm = L2 has no objective.eps: 8/255 is Linf's; set it, such as 0.5"),
        (("objective.eps=12", "objective.norm=L1"), "objective.norm = L1 has no objective.step: 2/255 is"),
    ):
        with pytest.raises(InputError, match=named):
            read_config(file, overrides)
    one_step = ("objective={name='fast-at', norm='L2', eps='1/2'}",)
    assert read_config(file, one_step).objective.eps == Fraction(1, 2)


def test_overrides_are_toml_or_else_text(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[method]\nname = 'harp'\n[objective]\neps = 0.25\n")
    config = read_config(
        file,
        (
            "method.keep=0.05",
            "network.name=vgg16_bn",
            "objective.step=4/255",
            "minimizer.name=s2ap",
            "minimizer.eta_z=lr",
            "method.rate_init=[0.1, 0.2]",
            "evaluation.stages=[]",
        ),
    )
    assert (config.method.name, config.method.keep, config.method.rate_init) == ("harp", 0.05, [0.1, 0.2])
    assert (config.network.name, config.minimizer.eta_z, config.evaluation.stages) == ("vgg16_bn", "lr", [])
    assert (config.objective.eps, config.objective.step) == (Fraction(1, 4), Fraction(4, 255))


@given(
    eps=st.fractions(0, 1, max_denominator=1000),
    eta_z=st.sampled_from(["lr", math.inf, 0.125]),
    gamma=st.floats(1e-6, 10),
    root=st.none() | st.just("/data/a b"),
    rate_init=st.sampled_from(["uniform", "target", [0.25, 1.0]]),
    width=st.none() | st.integers(1, 99),
)
@hypothesis_settings(deadline=None, max_examples=50)
def test_toml_round_trip(tmp_path_factory, eps, eta_z, gamma, root, rate_init, width):
    config = parse_config(
        {
            "title": 'a "title"\n[x]',
            "data": {"name": "cifar10", "root": root},
            "network": {"width": width},
            "objective": {"eps": str(eps)},
            "method": {"name": "harp", "rate_init": rate_init},
            "minimizer": {"name": "s2ap", "eta_z": eta_z, "gamma": gamma},
            "evaluation": {"eps": eps if width else None},
        },
        "test",
    )
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_text(config.to_toml())
    assert read_config(file) == config
    assert read_config(file).objective.eps == eps


def test_every_preset_is_valid_and_survives(tmp_path):
    assert "digits" in presets()
    for name in presets():
        config = read_config(name)
        (tmp_path / "config.toml").write_text(config.to_toml())
        assert read_config(tmp_path / "config.toml") == config
        assert config.title, name
