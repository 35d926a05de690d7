"""What a config makes of its run, against what runs do."""

import pytest

from s2ap_core.config import parse_config
from s2ap_core.methods import METHODS
from s2ap_core.methods.hydra import Hydra
from s2ap_core.runs import course
from s2ap_core.runs.passes import image_passes
from s2ap_core.training.loop import Callback
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network")

COUNTS = {"train": 1000, "val": 100, "test": 200}


class Unfinetuned(Hydra):
    finetuned = False


class Epochs(Callback):
    """The epochs of each stage, and those that were perturbed."""

    def __init__(self):
        self.trained, self.perturbed = {}, set()

    def on_iteration(self, loop, step):
        self.trained.setdefault(loop.stage, set()).add(loop.epoch)
        if loop.perturbation is not None and loop.stage == "prune":
            self.perturbed.add(loop.epoch)


@pytest.mark.parametrize(
    ("minimizer", "awp", "finetuned", "expected"),
    [
        ("none", False, True, "orig"),
        ("none", True, True, "orig-awp"),
        ("s2ap", True, True, "s2ap"),
        ("s2ap", False, True, "s2ap-plain"),
        ("s2ap", False, False, "s2ap"),
        ("none", True, False, "orig"),
        ("awp", False, False, "awp"),
    ],
)
def test_arms(minimizer, awp, finetuned, expected):
    sections = {"minimizer": {"name": minimizer}, "finetune": {"awp": awp}}
    stages = {"evaluation": {"stages": ["prune", "finetune"] if finetuned else ["prune"]}}
    assert course.arm(parse_config(sections | stages, "test")) == expected
    if finetuned:  # so are all where nothing is evaluated, and none of a method that finetunes nothing
        assert course.arm(parse_config(sections | {"evaluation": {"stages": []}}, "test")) == expected
    else:
        assert course.arm(parse_config(sections | {"method": {"name": "rlth"}}, "test")) == expected


def test_gammas_that_perturb_nothing_are_none():
    gammas = [
        course.gamma(parse_config({"minimizer": {"gamma": 0.5, "name": name}, "finetune": finetune, **more}, "test"))
        for name, finetune, more in (
            ("s2ap", {"awp": True, "gamma": 0.1}, {}),
            ("none", {"awp": True, "gamma": 0.1}, {}),
            ("none", {"awp": True}, {}),
            ("none", {"awp": True}, {"evaluation": {"stages": ["prune"]}}),
            ("none", {"awp": False, "gamma": 0.1}, {}),
        )
    ]
    assert gammas == [0.5, 0.1, 0.5, None, None]


@pytest.mark.parametrize("change", [{"source": "last"}, {"subset": 0.5}, {"every": 2}, {"carry": True}, {"eta_z": 1.0}])
def test_however_z_is_made_it_is_s2ap_and_where_nothing_is_perturbed_it_makes_no_difference(change):
    s2ap, orig = (parse_config({"minimizer": {"name": name, **change}}, "test") for name in ("s2ap", "none"))
    assert (course.arm(s2ap), course.as_published(s2ap)) == ("s2ap-plain", False)
    assert (course.arm(orig), course.as_published(orig)) == ("orig", True)


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("name", ["unfinetuned", "hydra"])
@pytest.mark.parametrize("stages", [[], ["pretrain"], ["prune"], ["finetune"], ["pretrain", "prune", "finetune"]])
def test_a_run_trains_and_ends_as_its_config_says(name, stages, tmp_path, new_run, data, monkeypatch):
    monkeypatch.setitem(METHODS, "unfinetuned", Unfinetuned)
    run = new_run(
        tmp_path / "run",
        method={"name": name},
        minimizer={"name": "s2ap", "gamma": 0.5, "warmup": 2},
        evaluation={"stages": stages, "attack": "none"},
    )
    seen = Epochs()
    Stages(run, data, callbacks=[seen]).all()
    entries, config = list(run.results()), run.config
    trained = [entry for entry in entries if not entry.startswith("evaluate-")]
    assert course.trained(config) == tuple(trained)
    assert [f"evaluate-{stage}" for stage in course.evaluated(config)] == entries[len(trained) :]
    # What is written last tells that nothing is missing.
    assert set(course.expected(config)) <= set(entries)
    assert entries[-1] in course.expected(config)
    assert {stage: set(course.epochs(config, stage)) for stage in trained} == seen.trained
    assert seen.perturbed == (set(course.perturbed(config)) if "prune" in trained else set())


def test_a_run_is_complete_once_its_last_stage_is(settings):
    unevaluated = settings(evaluation={"stages": []})
    assert course.expected(unevaluated) == ["finetune"]
    assert course.expected(settings(evaluation={"stages": []}, method={"name": "rlth"})) == ["prune"]


@pytest.mark.parametrize("name", ["none", "s2ap"])
@pytest.mark.parametrize("method", ["hydra", "rlth", "snip"])
def test_the_parts_of_a_run_take_what_the_whole_takes(name, method, settings):
    config = settings(
        method={"name": method},
        minimizer={"name": name, "warmup": 2},
        prune={"epochs": 5},
        finetune={"awp": True},
        tracking={"every": 1},
    )
    parts = [(None, "pretrain"), ("pretrain", "warmup"), ("warmup", "prune"), ("prune", "end")]
    whole = image_passes(config, COUNTS)
    for stage, passes in whole.items():
        assert sum(image_passes(config, COUNTS, *part).get(stage, 0) for part in parts) == pytest.approx(passes), stage
    assert (whole["pretrain"] > 0, "finetune" in whole) == (method != "rlth", method != "rlth")
    for stage in course.trained(config):
        ranges = [course.epochs(config, stage, *part) for part in parts]
        assert [epoch for part in ranges for epoch in part] == list(course.epochs(config, stage))


def test_one_mode_of_batch_norm_is_half_the_readings(settings):
    plain, both, one = (
        image_passes(settings(tracking=tracking), COUNTS)["prune"]
        for tracking in ({"every": 0}, {"every": 1}, {"every": 1, "batch_norm": ["batch"]})
    )
    assert one - plain == pytest.approx((both - plain) / 2)
