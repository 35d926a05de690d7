"""Damaged and hostile files through every command: a right answer or one line, within seconds and without harm."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import scipy.io
import torch
from contract import LARGEST, LONGEST, Broken, Outcome, checked, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_masks, load_tensors, save_tensors
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")

CONFIG = """
data.name = "prototypes"
network.name = "tiny"
objective = { name = "pgd-at", eps = "32/255", step = "16/255", steps = 1 }
pretrain = { epochs = 1, batch_size = 20 }
prune = { epochs = 1, batch_size = 20 }
finetune = { epochs = 1, batch_size = 20 }
evaluation = { attack = "pgd-50", n = 6 }
"""

SMALL = ["--quiet", "--json", "-"]
FOREIGN = ["--keep", "0.3", "--network", "tiny", "--dataset", "prototypes"]
MEASURE = ["--images", 8, "--batch-size", 8, "--hvps", 1, "--rho", 0.01, "--steps", 1, "--objective", "clean"]

Attempt = Callable[..., Outcome]


@dataclass(frozen=True)
class World:
    """Good files to damage, and what the commands say of them."""

    run: Path
    channels: Path
    checkpoint: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]
    mask: Path
    foreign: dict[str, Tensor]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_network: None, prototypes_registered: None) -> World:
    folder = tmp_path_factory.mktemp("world")
    runs = {}
    for name in ("hydra", "hydra-channels"):
        flops = ", flops_reduction = 2" if name == "hydra-channels" else ""
        (folder / f"{name}.toml").write_text(CONFIG + f'method = {{ name = "{name}", keep = 0.3{flops} }}\n')
        runs[name] = folder / name
        assert checked(["run", folder / f"{name}.toml", "--out", runs[name], "--quiet"]).status == 0
    checkpoint = runs["hydra"] / "ckpt" / "prune-best.safetensors"
    tensors, header = load_tensors(checkpoint)
    foreign = {name.replace(".scores", ".popup_scores"): tensor for name, tensor in tensors.items()}
    mask = runs["hydra"] / "masks" / "epoch-000.safetensors"
    channels = runs["hydra-channels"] / "ckpt" / "prune-best.safetensors"
    return World(runs["hydra"], channels, checkpoint, tensors, header, mask, foreign)


def commands_on(path: Path, world: World, options: list[Any], out: Path) -> dict[str, list[Any]]:
    """Every command that reads a checkpoint, on this one."""
    evaluation = ["--attack", "none", "--n", 6]
    config = ["--set", f"pretrain.checkpoint={path}", "--out", out / "run", "--quiet"]
    return {
        "inspect": ["inspect", path, *options, *SMALL],
        "verify": ["verify", path, *options, *SMALL],
        "sharpness": ["sharpness", path, *MEASURE, *options, *SMALL],
        "hamming": ["hamming", world.checkpoint, path, "--keep", 0.3, *SMALL],
        "evaluate": ["evaluate", path, *evaluation, *options, *SMALL],
        "export": ["export", path, "--out", out / "small.safetensors", "--rounds", 1, "--n", 4, *SMALL],
        "run": ["run", world.run.parent / "hydra.toml", *config],
    }


def attempt_checkpoint(
    attempt: Attempt, kind: str, path: Path, world: World, turn: int, options: list[Any] = FOREIGN
) -> dict[str, Outcome]:
    """A checkpoint through ``inspect`` and two more commands, all seven in turn."""
    out = path.parent.with_name("out")
    calls = commands_on(path, world, options, out)
    names = list(calls)[1:]
    chosen = ("inspect", names[turn % 6], names[(turn + 3) % 6])
    found = {}
    for name in chosen:
        statuses = (0, 1, 2) if name == "verify" else (0, 2)
        found[name] = attempt(f"{kind} / {name}", calls[name], untouched=path.parent, statuses=statuses)
        if found[name].status == 2 and out.exists():
            assert not [p for p in out.rglob("*.tmp")]
        shutil.rmtree(out, ignore_errors=True)
    return found


def all_of(kinds: list[tuple[str, Callable[[], None]]]) -> None:
    """Go through all cases and fail with all that broke."""
    broken = []
    for what, case in kinds:
        try:
            case()
        except (Broken, AssertionError) as error:
            broken.append(f"{what}: {error}")
    assert not broken, f"{len(broken)} of {len(kinds)} broke:\n" + "\n".join(broken)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the damaged file lies, alone."""
    made = tmp_path / "in"
    made.mkdir()
    return made


# --- checkpoints and masks of ours ---


def test_damaged_checkpoints_of_ours(attempt: Attempt, world: World, folder: Path) -> None:
    data = world.checkpoint.read_bytes()
    path = folder / "prune-best.safetensors"
    calls = commands_on(path, world, FOREIGN, folder.with_name("out"))
    path.write_bytes(data)
    intact = {name: checked(calls[name]).records() for name in ("inspect", "hamming")}
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 16)),
        *(("splice", *fault) for fault in mutate.splices(data, 16)),
        *(("header declares", *fault) for fault in mutate.safetensors_faults(data)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
    ]

    def case(turn: int, kind: str, held: bytes) -> None:
        path.write_bytes(held)
        for name, outcome in attempt_checkpoint(attempt, kind, path, world, turn, []).items():
            # What can be read is what was written.
            assert outcome.status == 2 or name not in intact or outcome.records() == intact[name]
            assert outcome.status == 0 or str(path) in outcome.stderr

    all_of([(what, lambda a=(turn, kind, held): case(*a)) for turn, (kind, what, held) in enumerate(faults)])


def test_any_flipped_bit_of_a_native_file_is_found(fault_table: Any, world: World, folder: Path) -> None:
    """A sample of all bits, each byte's turn for one of its bits."""
    rng = random.Random(0)
    for source in (world.checkpoint, world.mask, world.run / "ckpt" / "state-prune.safetensors"):
        data = source.read_bytes()
        tensors, header = load_tensors(source)
        path = folder / source.name
        begins = 8 + int.from_bytes(data[:8], "little")
        header_bytes = rng.sample(range(begins), 120)
        tensor_bytes = rng.sample(range(begins, len(data)), min(280, len(data) - begins))
        for position in header_bytes + tensor_bytes:
            damaged = bytearray(data)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            try:
                found, said = load_tensors(path)
            except InputError:
                fault_table.add("bit flip / load", True)
                continue
            # White space between entries, say: nothing may differ from what was written.
            same = position < begins and said == header and found.keys() == tensors.keys()
            same = same and all(torch.equal(found[name], tensors[name]) for name in tensors)
            fault_table.add("bit flip / load", same)
            assert same, (source, position)


def test_checkpoints_with_a_valid_checksum_and_wrong_tensors(attempt: Attempt, world: World, folder: Path) -> None:
    path = folder / "prune-best.safetensors"
    chosen = ("conv1.weight", "conv1.scores", "bn1.running_var", "bn1.num_batches_tracked")
    some = {name: world.tensors[name] for name in chosen}
    faults = list(mutate.dtype_and_shape_faults(some))

    def case(turn: int, tensors: dict[str, Tensor]) -> None:
        rest = {name: t for name, t in world.tensors.items() if name not in some}
        save_tensors(path, {**rest, **tensors} if tensors else {}, world.header)
        attempt_checkpoint(attempt, "wrong tensors", path, world, turn)

    all_of([(what, lambda a=(turn, tensors): case(*a)) for turn, (what, tensors) in enumerate(faults)])


def test_checkpoints_with_a_valid_checksum_and_wrong_headers(attempt: Attempt, world: World, folder: Path) -> None:
    path = folder / "prune-best.safetensors"

    def case(turn: int, header: dict[str, Any]) -> None:
        save_tensors(path, world.tensors, header)
        attempt_checkpoint(attempt, "wrong header", path, world, turn, [])

    faults = enumerate(mutate.header_faults(world.header))
    all_of([(what, lambda a=(turn, header): case(*a)) for turn, (what, header) in faults])


def test_damaged_masks_of_ours(attempt: Attempt, world: World, folder: Path) -> None:
    data = world.mask.read_bytes()
    path = folder / "epoch-003.safetensors"
    packed, header = load_tensors(world.mask)
    name = next(iter(packed))
    faults = [
        *(("truncation", *fault) for fault in mutate.truncations(data)),
        *(("bit flip", *fault) for fault in mutate.bit_flips(data, 12)),
        *(("header declares", *fault) for fault in mutate.safetensors_faults(data)),
        *(("wrong format", *fault) for fault in mutate.FORMATS.items()),
    ]
    crafted = [(what, packed, header) for what, header in mutate.shapes_faults(header)]
    bits = packed[name]
    for what, other in (
        ("floats", bits.float()),
        ("shorter", bits[:-1]),
        ("longer", torch.cat([bits, bits])),
        ("set behind the end", bits | 255),
        ("a scalar", bits[0]),
        ("a table", bits[None]),
    ):
        crafted.append((what, {**packed, name: other}, header))

    def hamming(kind: str) -> None:
        outcome = attempt(f"{kind} / hamming", ["hamming", world.mask, path, *SMALL], untouched=folder)
        if outcome.status == 0:
            assert outcome.records()[0]["flipped"] == 0
        else:
            assert str(path) in outcome.stderr

    def raw(kind: str, held: bytes) -> None:
        path.write_bytes(held)
        hamming(kind)

    def made(tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        save_tensors(path, tensors, header)
        outcome = attempt("wrong shapes / hamming", ["hamming", world.mask, path, *SMALL], untouched=folder)
        first = attempt("wrong shapes / hamming", ["hamming", path, world.mask, *SMALL], untouched=folder)
        assert outcome.status == first.status

    all_of([(what, lambda a=(kind, held): raw(*a)) for kind, what, held in faults])
    all_of([(what, lambda a=(tensors, header): made(*a)) for what, tensors, header in crafted])


# --- other tools' files ---


def test_other_tools_checkpoints(attempt: Attempt, world: World, folder: Path) -> None:
    faults: list[tuple[str, str, str, bytes]] = []
    for suffix, data in (
        (".pth.tar", mutate.saved({"state_dict": world.foreign, "epoch": 3})),
        (".pt", mutate.saved(world.foreign, legacy=True)),
        (".safetensors", mutate.foreign_safetensors(world.foreign)),
    ):
        faults += [("truncation", what, suffix, held) for what, held in mutate.truncations(data)]
        faults += [("bit flip", what, suffix, held) for what, held in mutate.bit_flips(data, 16)]
        faults += [("splice", what, suffix, held) for what, held in mutate.splices(data, 10)]
        faults += [("wrong format", what, suffix, held) for what, held in mutate.FORMATS.items()]
    faults += [("hostile archive", what, ".pt", held) for what, held in mutate.torch_faults(world.foreign)]
    faults += [
        ("header declares", what, ".safetensors", held)
        for what, held in mutate.safetensors_faults(mutate.foreign_safetensors(world.foreign))
    ]

    def case(turn: int, kind: str, suffix: str, held: bytes) -> None:
        path = folder / f"checkpoint_3{suffix}"
        path.write_bytes(held)
        attempt_checkpoint(attempt, f"other tool, {kind}", path, world, turn)
        path.unlink()

    all_of([(what, lambda a=(turn, k, s, h): case(*a)) for turn, (k, what, s, h) in enumerate(faults)])


def tool_states(foreign: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same network in the layout of each tool."""
    yield foreign
    layers = [name.removesuffix(".popup_scores") for name in foreign if name.endswith("popup_scores")]
    yield {**foreign, **{f"{layer}.k_score": torch.tensor(0.2) for layer in layers}}
    yield {name.replace("popup_scores", "scores"): tensor for name, tensor in foreign.items()}
    plain = {name: tensor for name, tensor in foreign.items() if not name.endswith("popup_scores")}
    yield plain
    pruned = {name.replace(".weight", ".weight_orig") if name[:-7] in layers else name: t for name, t in plain.items()}
    yield pruned | {f"{layer}.weight_mask": (plain[f"{layer}.weight"] > 0).float() for layer in layers}


def test_other_tools_wrong_tensors(attempt: Attempt, world: World, folder: Path) -> None:
    faults = []
    for state in tool_states(world.foreign):
        some = {name: t for name, t in state.items() if name.startswith(("conv2.", "linear.bias"))}
        rest = {name: t for name, t in state.items() if name not in some}
        faults += [(what, {**rest, **tensors}) for what, tensors in mutate.dtype_and_shape_faults(some)]

    def case(turn: int, tensors: dict[str, Tensor]) -> None:
        path = folder / f"checkpoint_3.{'pt' if turn % 3 else 'safetensors'}"
        path.write_bytes(mutate.saved(tensors) if turn % 3 else mutate.foreign_safetensors(tensors))
        options = FOREIGN if turn % 2 else FOREIGN[:2]  # without --network: masks of any network
        for name in ("inspect", "hamming") if turn % 4 else ("verify", "evaluate"):
            calls = commands_on(path, world, options, folder.with_name("out"))
            statuses = (0, 1, 2) if name == "verify" else (0, 2)
            attempt(f"other tool, wrong tensors / {name}", calls[name], untouched=folder, statuses=statuses)
        path.unlink()

    all_of([(what, lambda a=(turn, tensors): case(*a)) for turn, (what, tensors) in enumerate(faults)])


def test_plain_arrays_as_masks(attempt: Attempt, world: World, folder: Path) -> None:
    found = {name.removesuffix(".weight"): bits.numpy() for name, bits in load_masks(world.mask)[0].items()}
    np.savez_compressed(folder / "good.npz", **found)
    np.save(folder / "good.npy", next(iter(found.values())))
    npz, npy_data = (folder / "good.npz").read_bytes(), (folder / "good.npy").read_bytes()
    other = folder.with_name("good.npy")
    (folder / "good.npz").unlink()
    shutil.move(folder / "good.npy", other)
    faults = [("hostile array", what, ".npz", held) for what, held in mutate.npz_faults(npz)]
    faults += [("hostile array", what, ".npy", held) for what, held in mutate.npy_faults()]
    for suffix, data in ((".npz", npz), (".npy", npy_data)):
        faults += [("truncation", what, suffix, held) for what, held in mutate.truncations(data)]
        faults += [("bit flip", what, suffix, held) for what, held in mutate.bit_flips(data, 24)]
        faults += [("splice", what, suffix, held) for what, held in mutate.splices(data, 16)]
        faults += [("wrong format", what, suffix, held) for what, held in mutate.FORMATS.items()]

    def case(kind: str, suffix: str, held: bytes) -> None:
        path = folder / f"mask_3{suffix}"
        path.write_bytes(held)
        good = other if suffix == ".npy" else world.mask
        for pair in ([good, path], [path, path]):
            outcome = attempt(f"{kind} / hamming", ["hamming", *pair, *SMALL], untouched=folder)
        # A file that can be read is the same as itself.
        assert outcome.status == 2 or outcome.records()[0]["flipped"] == 0
        path.unlink()

    all_of([(f"{suffix} {what}", lambda a=(k, suffix, h): case(*a)) for k, what, suffix, h in faults])


# --- evaluations ---


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
    attempt("wrong state / run --resume", ["run", "--resume", "--out", run, "--quiet"])


# --- data ---


def batch_bytes(count: int = 4) -> bytes:
    """A CIFAR-10 batch."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": data, "labels": [i % 10 for i in range(count)]}, protocol=2)


def data_faults() -> Iterator[tuple[str, str, str, bytes]]:
    """Data set, file, what was done to it and its bytes."""
    images, labels = mutate.array_bytes(np.zeros((10, 32, 32, 3), np.uint8)), mutate.array_bytes(np.zeros(10, np.uint8))
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    y = np.arange(1, 7, dtype=np.uint8)[:, None]
    files = {
        ("cifar10", "data_batch_1"): batch_bytes(),
        ("cifar10c", "fog.npy"): images,
        ("cifar10c", "labels.npy"): labels,
    }
    for packed in (False, True):
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"s2ap-{os.getpid()}.mat"
        scipy.io.savemat(path, {"X": x, "y": y}, do_compression=packed)
        files["svhn", f"{'train' if packed else 'test'}_32x32.mat"] = path.read_bytes()
        path.unlink()
    for (data, name), held in files.items():
        for how in (
            mutate.truncations(held),
            mutate.bit_flips(held, 20),
            mutate.splices(held, 8),
            mutate.FORMATS.items(),
        ):
            for what, damaged in how:
                yield data, name, what, damaged
    for what, damaged in mutate.npy_faults():
        yield "cifar10c", "fog.npy", what, damaged
        yield "cifar10c", "labels.npy", what, damaged
    for what, damaged in (
        ("long bytes", b"\x80\4\x8e" + (2**40).to_bytes(8, "little") + b"."),
        ("a long frame", b"\x80\4\x95" + (2**40).to_bytes(8, "little") + b"."),
        ("a long number", b"\x80\2\x8b\xff\xff\xff\x7f."),
        ("nested", b"(" * 500_000 + b"t" * 500_000 + b"."),
        ("nested lists", b"\x80\2" + b"]" * 500_000 + b"a" * 499_999 + b"."),
        ("a huge array", b"\x80\2cnumpy\nndarray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."),
        ("a large array", b"\x80\2cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R."),
        ("a memo far away", b"\x80\2]r\xff\xff\xff\xff."),
    ):
        yield "cifar10", "data_batch_1", what, damaged
    yield "svhn", "train_32x32.mat", "bomb", mutate.mat_bomb()


def test_damaged_data_sets(attempt: Attempt, folder: Path) -> None:
    def case(data: str, name: str, held: bytes) -> None:
        path = folder / name
        path.write_bytes(held)
        outcome = attempt(
            f"damaged {name} / data check", ["data", "check", data, "--root", folder, *SMALL][:-2], untouched=folder
        )
        assert outcome.status == 2  # the other files are missing at the least
        path.unlink()

    all_of([(f"{name} {what}", lambda a=(data, name, h): case(*a)) for data, name, what, h in data_faults()])


# --- names, links and what is no file ---


def test_links_in_circles_and_what_is_no_file(attempt: Attempt, world: World, folder: Path) -> None:
    (folder / "circle.pt").symlink_to(folder / "circle.pt")
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    (folder / "a.npz").symlink_to(folder / "b.npz")
    (folder / "b.npz").symlink_to(folder / "a.npz")
    os.mkfifo(folder / "pipe.pt")
    (folder / "folder.safetensors").mkdir()
    (folder / "config.toml").symlink_to(folder / "config.toml")
    for name in ("circle.pt", "gone.safetensors", "a.npz", "pipe.pt", "folder.safetensors", "config.toml", "no.pt"):
        path = folder / name
        for command, call in commands_on(path, world, FOREIGN, folder.with_name("out")).items():
            outcome = attempt(f"no file / {command}", call, untouched=folder)
            assert outcome.status == 2
            assert str(path) in outcome.stderr
        for call in (["run", path, "--out", folder / "x", "--quiet"], ["run", "--resume", "--out", path, "--quiet"]):
            assert attempt("no file / run", call, untouched=folder).status == 2
    for command in ("inspect", "hamming", "sharpness"):
        assert attempt(f"no file / {command}", [command, folder, *SMALL], untouched=folder).status == 2


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", ":boom:", "a b", "ünï", "-x", "%s{0}", "a\nb", "x" * 255])
def test_names_that_mean_something_to_a_terminal(attempt: Attempt, world: World, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    path = folder / "prune-best.safetensors"
    shutil.copy(world.checkpoint, path)
    for call in (["inspect", path], ["verify", path], ["evaluate", path, "--attack", "none", "--n", 6]):
        assert attempt("odd name / " + call[0], call, untouched=folder).status == 0
    path.write_bytes(b"")
    assert attempt("odd name / inspect", ["inspect", path]).status == 2


@pytest.mark.parametrize("name", ["[red]x", ":boom:"])
def test_a_table_shows_a_name_as_it_is(
    attempt: Attempt, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(world.checkpoint, f"{name}.safetensors")
    assert name in attempt("odd name / inspect", ["inspect", f"{name}.safetensors"]).stdout


def test_names_that_no_file_can_have(attempt: Attempt, world: World, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    path.write_bytes(b"")
    for bad in (path, tmp_path / ("x" * 5000)):
        for command, call in commands_on(bad, world, FOREIGN, tmp_path / "out").items():
            if command != "run":
                assert attempt(f"odd name / {command}", call).status == 2


# --- bytes at random ---

EDIT = st.tuples(
    st.sampled_from(["flip", "remove", "insert", "overwrite"]),
    st.integers(0, 10_000),
    st.integers(1, 300),
    st.binary(min_size=1, max_size=40),
)


@given(
    st.sampled_from(["ours", "mask", "zip", "legacy", "safetensors", "npz", "npy"]),
    st.lists(EDIT, min_size=1, max_size=4),
)
@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_bytes_edited_at_random(attempt: Attempt, world: World, tmp_path_factory: Any, form: str, edits: Any) -> None:
    arrays = {name.removesuffix(".weight"): bits.numpy() for name, bits in load_masks(world.mask)[0].items()}
    suffix, data = {
        "ours": (".safetensors", world.checkpoint.read_bytes),
        "mask": (".safetensors", world.mask.read_bytes),
        "zip": (".pth", lambda: mutate.saved(world.foreign)),
        "legacy": (".pt", lambda: mutate.saved(world.foreign, legacy=True)),
        "safetensors": (".safetensors", lambda: mutate.foreign_safetensors(world.foreign)),
        "npz": (".npz", lambda: mutate.zipped({f"{n}.npy": mutate.array_bytes(a) for n, a in arrays.items()})),
        "npy": (".npy", lambda: mutate.array_bytes(arrays["conv1"])),
    }[form]
    folder = tmp_path_factory.mktemp("edited")
    path = folder / f"epoch_3{suffix}"
    path.write_bytes(mutate.edited(data(), edits))
    calls = commands_on(path, world, FOREIGN, folder / "out")
    attempt("random edits / hamming", calls["hamming"], untouched=folder)
    if form not in ("npz", "npy", "mask"):
        attempt("random edits / inspect", calls["inspect"], untouched=folder)


# --- the installed script ---


def processes(world: World, folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Twenty bad files and the arguments that read them."""

    def put(name: str, held: bytes) -> Path:
        (folder / name).write_bytes(held)
        return folder / name

    data = world.checkpoint.read_bytes()
    torches = dict(mutate.torch_faults(world.foreign))
    declared = dict(mutate.safetensors_faults(data))
    npz = dict(mutate.npz_faults(mutate.zipped({"a.npy": mutate.array_bytes(np.ones(3, bool))})))
    toml = dict(mutate.toml_faults(CONFIG))
    wide = {**world.header, "network": {**world.header["network"], "name": "resnet18", "width": 10**5}}
    save_tensors(folder / "wide.safetensors", world.tensors, wide)
    packed, header = load_tensors(world.mask)
    name = next(iter(packed))
    save_tensors(folder / "huge.safetensors", packed, {**header, "shapes": {**header["shapes"], name: [2**40]}})
    foreign = ["--keep", 0.3, "--network", "resnet18", "--dataset", "digits"]
    long_bytes = b"\x80\4\x8e" + bytes(5) + b"\2\0\0."
    yield "truncation", ["inspect", put("cut.safetensors", data[:1000])]
    yield "bit flip", ["verify", put("flipped.safetensors", data[:-1] + bytes([data[-1] ^ 1]))]
    yield "terabytes", ["sharpness", put("terabytes.safetensors", declared["terabytes"])]
    yield "nested", ["inspect", put("nested.safetensors", declared["metadata nested"])]
    yield "wide network", ["inspect", folder / "wide.safetensors"]
    yield "wide network", ["evaluate", folder / "wide.safetensors", "--n", 4]
    yield "huge mask", ["hamming", folder / "huge.safetensors", world.mask]
    yield "bomb", ["inspect", put("bomb.pt", torches["bomb of a storage"]), *foreign]
    yield "repeated", ["inspect", put("repeated.pt", torches["repeated a billion times"]), *foreign]
    yield "sparse", ["verify", put("sparse.pt", torches["sparse of terabytes"]), *foreign]
    yield "nested", ["inspect", put("nested.pt", torches["pickle nested"]), *foreign]
    yield "bomb", ["hamming", put("bomb.npz", npz["bomb of zeros"]), put("b.npz", npz["bomb no array"])]
    yield "huge array", ["hamming", put("a.npy", dict(mutate.npy_faults())[f"<f8 ({2**40},)"]), folder / "a.npy"]
    yield "png", ["inspect", put("picture.safetensors", mutate.PNG)]
    yield "toml", ["hamming", put("config.npz", mutate.FORMATS["toml"]), folder / "config.npz"]
    yield "config", ["run", put("deep.toml", toml["deep array"]), "--out", folder / "out"]
    yield "config", ["run", put("eps.toml", toml["eps of a billion digits"]), "--out", folder / "out"]
    yield "bomb", ["data", "check", "svhn", "--quiet", "--root", put("train_32x32.mat", mutate.mat_bomb()).parent]
    yield (
        "long bytes",
        ["data", "check", "cifar10", "--quiet", "--root", put("data_batch_1", long_bytes).parent],
    )
    yield "circle", ["inspect", folder / "circle.pt"]


LIMIT = 8 << 30
"""Bytes of address space of a process; torch's libraries map some of them."""

FORKED = """
import json, os, resource, runpy, sys, time, traceback
import importlib, scipy.io, sklearn.model_selection
for name in ("inspect", "verify", "sharpness", "hamming", "evaluate", "run", "data"):
    importlib.import_module(f"s2ap_diag.commands.{name}")
for line in sys.stdin:
    arguments, folder = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if not child:
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
        sys.argv, status = ["s2ap-diag", *arguments], 1
        try:
            runpy.run_module("s2ap_diag", run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status, usage = os.wait4(child, 0)
    ended = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, time.monotonic() - started]
    print(json.dumps([*ended, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)
"""


@pytest.mark.slow
def test_twenty_bad_files_through_the_installed_script(fault_table: Any, world: World, folder: Path) -> None:
    """Two of them by starting it; the others share the imports, and each has a process of its own all the same."""
    (folder / "circle.pt").symlink_to(folder / "circle.pt")
    faults = list(processes(world, folder))
    before, out = snapshot(folder), folder.with_name("said")
    out.mkdir()
    broken = []

    def judge(kind: str, arguments: list[Any], status: int, stdout: str, stderr: str) -> None:
        survived = status == 2 and len(stderr.splitlines()) == 1 and stderr.startswith("error: ") and not stdout
        fault_table.add(f"{kind} / installed script", survived)
        if not survived:
            broken.append((arguments, status, stderr[-800:]))

    for kind, arguments in faults[:2]:
        command = [sys.executable, "-m", "s2ap_diag", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        judge(kind, arguments, ended.returncode, ended.stdout, ended.stderr)
    program = [sys.executable, "-c", FORKED, str(LIMIT)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout
        for kind, arguments in faults[2:]:
            server.stdin.write(json.dumps([list(map(str, arguments)), str(out)]) + "\n")
            server.stdin.flush()
            status, largest, seconds, shared = json.loads(server.stdout.readline())
            judge(kind, arguments, status, (out / "stdout").read_text(), (out / "stderr").read_text())
            assert seconds < LONGEST, (arguments, seconds)
            assert largest - shared < LARGEST, (arguments, largest)
    assert len(faults) == 20
    assert not broken, broken
    assert snapshot(folder) == before


def test_at_least_five_hundred_cases_were_tried(fault_table: Any, request: pytest.FixtureRequest) -> None:
    module = request.module
    ran = {item.originalname for item in request.session.items if item.module is module}
    if {name for name in vars(module) if name.startswith("test_")} - ran:
        pytest.skip("only a part of the file was run")
    assert fault_table.tried() >= 500
