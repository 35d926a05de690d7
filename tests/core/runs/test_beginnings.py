"""What runs share: a run that goes on from another's beginning is the run it would have been alone."""

from pathlib import Path

import pytest

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.course import digest
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network")

S2AP = {"minimizer": {"name": "s2ap", "gamma": 0.5, "warmup": 2}}
ORIG = {"minimizer": {"name": "none", "warmup": 2}}
AWP = S2AP | {"finetune": {"awp": True, "epochs": 2, "batch_size": 16}}
HARP = {"method": {"name": "harp", "keep": 0.3, "penalty": 0.5}}


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but those that tell the time or the machine."""
    files = [p for p in run.rglob("*") if p.is_file() and p.name not in ("environment.json", "timing.csv")]
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("until", "first", "second"),
    [
        ("pretrain", HARP | ORIG, S2AP),
        ("warmup", ORIG, S2AP),
        ("warmup", HARP | S2AP, HARP | ORIG),
        ("prune", S2AP, AWP),
    ],
)
def test_a_run_that_goes_on_from_another_is_the_run_it_would_have_been_alone(
    until, first, second, tmp_path, new_run, settings, data
):
    alone = new_run(tmp_path / "alone", **second)
    Stages(alone, data).all()
    source = new_run(tmp_path / "source", **first)
    Stages(source, data).all(until=until)
    before = contents(source.path)
    run = continue_from(source.path, tmp_path / "run", settings(**second), until, "cpu")
    Stages(run, data).all()
    ours, theirs = contents(run.path), contents(alone.path)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert contents(source.path) == before


def test_orig_and_s2ap_are_the_same_until_the_warm_up_ends_and_then_part(tmp_path, new_run, data):
    for name, sections in (("orig", ORIG), ("s2ap", S2AP)):
        Stages(new_run(tmp_path / name, **sections), data).all()

    def state(arm: str, epoch: int) -> dict[str, bytes]:
        """Scores, weights and statistics."""
        tensors, _ = load_tensors(RunDirectory.open(tmp_path / arm).checkpoint(f"prune-epoch-{epoch:03d}"))
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    assert [state("orig", epoch) == state("s2ap", epoch) for epoch in range(4)] == [True, True, True, False]


def test_what_a_beginning_depends_on_tells_runs_apart(settings):
    base = settings(**S2AP)
    sections = {
        "pretrain": {"pretrain": {"lr": 0.2}},
        "warmup": {"method": {"name": "hydra", "keep": 0.2}},
        "prune": {"minimizer": {**S2AP["minimizer"], "gamma": 0.1}},
        "end": {"finetune": {"awp": True}},
    }
    order = list(sections)
    for until, changed in sections.items():
        other = settings(**{**S2AP, **changed})
        same = [part for part in order if digest(base, part) == digest(other, part)]
        assert same == order[: order.index(until)], until
    assert digest(settings(**S2AP), "warmup") == digest(settings(**ORIG), "warmup")
    # The weights that RLTH never trains depend on how they are drawn.
    rlth = [settings(method={"name": "rlth", "keep": 0.3, "init": init}) for init in ("kaiming", "signed-constant")]
    assert digest(rlth[0], "pretrain") != digest(rlth[1], "pretrain")


def test_a_run_is_refused_another_ones_beginning(tmp_path, new_run, settings, data):
    source = new_run(tmp_path / "source", **ORIG)
    Stages(source, data).all(until="pretrain")
    with pytest.raises(InputError, match=r"source: began with seed = 0, not 1"):
        continue_from(source.path, tmp_path / "run", settings(seed=1), "pretrain", "cpu")
    with pytest.raises(InputError, match="exists already"):
        continue_from(source.path, source.path, settings(**ORIG), "pretrain", "cpu")
    assert not (tmp_path / "run").exists()
