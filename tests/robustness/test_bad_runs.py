"""Damaged evaluations, configs and states: a run is refused in one line, or goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import torch
from bad_world import CONFIG, SMALL, Attempt, World, all_of
from contract import checked
from torch import Tensor

from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


def test_damaged_evaluations(attempt: Attempt, world: World, folder: Path) -> None:
    command = ["evaluate", world.checkpoint, "--attack", "none", "--n", 6, "--evals", folder, *SMALL]
    intact = checked(command).records()
    (path,) = folder.iterdir()
    data = path.read_bytes()
    with np.load(path) as arrays:
        columns = dict(arrays)
    about = json.loads(str(columns["about"]))
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 24)),
        *(("splice", *fault) for fault in mutate.splices(data, 10)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
        *(("hostile array", *fault) for fault in mutate.npz_faults(data)),
    ]
    crafted: dict[str, dict[str, Any]] = {
        "shorter": {"robust": columns["robust"][:3]},
        "a table": {"clean": columns["clean"][None]},
        "a scalar": {"label": np.array(3)},
        "of text": {"clean": np.array(["yes"] * 6)},
        "of floats": {"clean": np.full(6, 0.5)},
        "of NaN": {"robust": np.full(6, np.nan)},
        "of numbers": {"robust": np.arange(6)},
        "of dates": {"label": np.zeros(6, "datetime64[s]")},
        "labels below zero": {"label": np.full(6, -1)},
        "in another order": {"index": columns["index"][::-1]},
        "twice the same": {"index": np.zeros(6, np.int64)},
        "robust where it is not clean": {"robust": ~columns["clean"]},
        "longer than the data": {name: np.resize(columns[name], 1000) for name in ("index", "label", "clean")},
        "empty": {name: columns[name][:0] for name in columns if name != "about"},
        "without a column": {"noise": None},
        "about a list": {"about": np.array(json.dumps([about]))},
        "about nothing": {"about": np.array("null")},
        "about not JSON": {"about": np.array("{")},
        "about nested": {"about": np.array("[" * 100_000)},
        "about an array": {"about": np.array(["{}", "{}"])},
        "about a number": {"about": np.array(3)},
        "about another": {"about": np.array(json.dumps({**about, "checkpoint": "0"}))},
        "about without an attack": {"about": np.array(json.dumps({k: v for k, v in about.items() if k != "attack"}))},
        "about more": {"about": np.array(json.dumps({**about, "more\nlines": "\n"}))},
    }
    for what, changes in crafted.items():
        content = {name: array for name, array in {**columns, **changes}.items() if array is not None}
        np.savez(folder / "made.npz", **content)
        faults.append(("wrong evaluation", what, (folder / "made.npz").read_bytes()))
    (folder / "made.npz").unlink()

    def case(kind: str, held: bytes) -> None:
        path.write_bytes(held)
        outcome = attempt(f"{kind} / evaluate", command)
        assert [p.name for p in folder.iterdir()] == [path.name]
        if outcome.status == 2:
            assert path.read_bytes() == held
            assert str(path) in outcome.stderr
        else:
            assert outcome.records() == intact

    all_of([(what, lambda a=(kind, held): case(*a)) for kind, what, held in faults])


# --- configs and runs ---
@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """``run`` ends where its stages would begin: a damaged config that is valid may ask for years."""
    monkeypatch.setattr(Stages, "all", lambda *_, **__: None)


def test_damaged_configs(attempt: Attempt, world: World, folder: Path, without_training: None) -> None:
    data = CONFIG.encode()
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 40)),
        *(("splice", *fault) for fault in mutate.splices(data, 20)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
        *(("hostile config", *fault) for fault in mutate.toml_faults(CONFIG)),
    ]
    path, out = folder / "config.toml", folder.with_name("out")

    def case(kind: str, held: bytes) -> None:
        path.write_bytes(held)
        outcome = attempt(f"{kind} / run", ["run", path, "--out", out, "--quiet"], untouched=folder)
        assert outcome.status == 0 or not out.exists()
        shutil.rmtree(out, ignore_errors=True)

    all_of([(what, lambda a=(kind, held): case(*a)) for kind, what, held in faults])


def run_faults(world: World) -> Iterator[tuple[str, str, bytes]]:
    """A file of a finished or interrupted run, and what is put in its place."""
    formats = ("empty", "png", "zeros")
    for name in ("config.toml", "results.json", "ckpt/pretrain.safetensors", "ckpt/state-prune.safetensors",
                 "ckpt/prune-best.safetensors", "ckpt/state-finetune.safetensors", "evals/finetune.npz"):  # fmt: skip
        data = (world.run / name).read_bytes()
        for what in formats:
            yield name, what, mutate.FORMATS[what]
        for what, held in [*list(mutate.truncations(data))[::4], *mutate.bit_flips(data, 1)]:
            yield name, what, held
    for what, content in (
        ("stages numbers", '{"pretrain": 1, "prune": 2}'),
        ("an evaluation a number", '{"evaluate-prune": 3}'),
        ("an accuracy in words", '{"evaluate-finetune": {"clean_accuracy": "high", "robust_accuracy": null}}'),
        ("latin-1", '{"a": "\xe9"}'),
    ):
        yield "results.json", what, content.encode("latin-1")
    for what, held in list(mutate.toml_faults(CONFIG))[7:12]:
        yield "config.toml", what, held


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 100_000], ids=["list", "number", "null", "nested"])
def test_results_of_another_type(attempt: Attempt, world: World, tmp_path: Path, content: str) -> None:
    shutil.copytree(world.run, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(content)
    call = ["run", "--resume", "--out", tmp_path / "run", "--quiet"]
    assert attempt("wrong results / run --resume", call).status == 2


@pytest.mark.parametrize("what", ["deep array", "deep closed array", "deep table", "a number of 9,999 digits"])
def test_run_with_a_config_that_python_cannot_parse(attempt: Attempt, world: World, tmp_path: Path, what: str) -> None:
    shutil.copytree(world.run, tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_bytes(dict(mutate.toml_faults(CONFIG))[what])
    call = ["run", "--resume", "--out", tmp_path / "run", "--quiet"]
    assert attempt("wrong config / run --resume", call).status == 2


def test_runs_resumed_with_damaged_files(
    attempt: Attempt, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other time the results are gone, so that every stage looks at its files again."""
    begun, all_stages = tmp_path / "begun", Stages.all
    shutil.copytree(world.run, begun)

    def never(*_: Any, **__: Any) -> None:
        """A damaged config that is valid may ask for years."""

    def case(turn: int, name: str, held: bytes) -> None:
        run = tmp_path / f"run{turn}"
        shutil.copytree(begun, run)
        monkeypatch.setattr(Stages, "all", never if name == "config.toml" else all_stages)
        if name != "results.json" and turn % 2:
            (run / "results.json").unlink()
        (run / name).write_bytes(held)
        outcome = attempt(f"damaged run, {name} / run --resume", ["run", "--resume", "--out", run, "--quiet"])
        assert not list(run.rglob("*.tmp"))
        assert outcome.status == 0 or (run / name).read_bytes() == held
        shutil.rmtree(run)

    all_of([(f"{n} {what}", lambda a=(t, n, h): case(*a)) for t, (n, what, h) in enumerate(run_faults(world))])


def state_faults(tensors: dict[str, Tensor], header: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """States of a stage with a valid checksum and content from which no run can go on."""
    first = next(name for name in tensors if name.startswith("optimizer."))
    for entry in ("epoch", "selection", "metrics_bytes"):
        yield f"no {entry}", tensors, {k: v for k, v in header.items() if k != entry}
    yield "epoch a string", tensors, {**header, "epoch": "1"}
    yield "selection a number", tensors, {**header, "selection": 3}
    yield "metrics in words", tensors, {**header, "metrics_bytes": "many"}
    yield "another group", {**tensors, "other.0": torch.ones(1)}, header
    yield "optimizer in words", {**tensors, "optimizer.x.momentum_buffer": torch.ones(1)}, header
    yield "momentum of another shape", {**tensors, first: torch.ones(7)}, header
    yield "no schedule", tensors, {k: v for k, v in header.items() if k != "schedule"}
    yield "schedule a list", tensors, {**header, "schedule": [1]}
    yield "schedule of another epoch", tensors, {**header, "schedule": {**header["schedule"], "last_epoch": 99}}
    yield "method a list", tensors, {**header, "method": [1]}
    yield "optimizer of no parameter", {**tensors, "optimizer.999.momentum_buffer": torch.ones(1)}, header
    yield "no model", {k: t for k, t in tensors.items() if not k.startswith("model.")}, header


STATES = [
    "no epoch",
    "no selection",
    "no metrics_bytes",
    "epoch a string",
    "selection a number",
    "metrics in words",
    "another group",
    "optimizer in words",
    "momentum of another shape",
    "no schedule",
    "schedule a list",
    "schedule of another epoch",
    "method a list",
    "optimizer of no parameter",
    "no model",
]


@pytest.mark.parametrize("what", STATES)
def test_states_with_a_valid_checksum_and_wrong_content(
    attempt: Attempt, world: World, tmp_path: Path, what: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    state = run / "ckpt" / "state-prune.safetensors"
    crafted = {name: content for name, *content in state_faults(*load_tensors(state))}
    save_tensors(state, *crafted[what])
    (run / "results.json").unlink()
    # One epoch more, so that the state is really gone on from.
    sections = [line for line in CONFIG.splitlines() if not line.startswith("prune")]
    longer = ["prune = { epochs = 2, batch_size = 20 }", 'method = { name = "hydra", keep = 0.3 }']
    (run / "config.toml").write_text("\n".join([*sections, *longer]))
    attempt("wrong state / run --resume", ["run", "--resume", "--force", "--out", run, "--quiet"])
