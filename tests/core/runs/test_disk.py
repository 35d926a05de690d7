"""The files of a run, foreseen, against those that runs leave."""

from pathlib import Path

import pytest

from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.disk import HEADERS, files_of_run, files_taken_over
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network")

S2AP = {"minimizer": {"name": "s2ap", "gamma": 0.5, "warmup": 2}}
ORIG = {"minimizer": {"name": "none", "warmup": 2}}
AWP = S2AP | {"finetune": {"awp": True, "epochs": 2, "batch_size": 16}}


def tensor_files(run: Path) -> dict[Path, int]:
    return {file.relative_to(run): file.stat().st_size for file in run.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("sections", "until", "keep"),
    [
        (ORIG, "end", None),
        (AWP, "end", 1),
        ({"minimizer": S2AP["minimizer"] | {"carry": True}, "method": {"name": "harp", "penalty": 0.5}}, "end", 2),
        ({"method": {"name": "rlth"}, "evaluation": {"stages": []}}, "end", None),
        ({"method": {"name": "hydra-channels", "flops_reduction": 2}}, "end", None),
        ({"evaluation": {"stages": ["pretrain"]}}, "end", None),
        ({stage: {"optimizer": "adamw"} for stage in ("pretrain", "prune", "finetune")}, "end", None),
        ({"method": {"name": "magnitude-global", "keep": 0.1}}, "end", None),
        ({"method": {"name": "harp"}, "prune": {"epochs": 0}}, "end", None),
        (S2AP, "pretrain", None),
        (S2AP, "warmup", None),
        (S2AP | {"evaluation": {"stages": ["prune"]}}, "prune", None),
    ],
)
def test_a_run_leaves_the_files_that_were_foreseen(sections, until, keep, tmp_path, new_run, data):
    run = new_run(tmp_path / "run", **sections)
    foreseen = files_of_run(run.config, data, keep, until)
    Stages(run, data, keep_checkpoints=keep).all(until)
    there = tensor_files(run.path)
    assert foreseen.keys() == there.keys()
    assert all(foreseen[file] - HEADERS <= there[file] <= foreseen[file] for file in there)


@pytest.mark.parametrize(
    ("since", "first", "second"),
    [("pretrain", ORIG, S2AP), ("warmup", ORIG, S2AP), ("warmup", S2AP, S2AP), ("prune", S2AP, AWP)],
)
def test_what_a_run_takes_over_is_linked(since, first, second, tmp_path, new_run, settings, data):
    source = new_run(tmp_path / "source", **first)
    Stages(source, data).all(until=since)
    run = continue_from(source.path, tmp_path / "run", settings(**second), since, "cpu")
    Stages(run, data).all()
    linked = {file for file in tensor_files(run.path) if (run.path / file).stat().st_nlink > 1}
    assert files_taken_over(run.config, data, since, first["minimizer"]["name"]) == linked
