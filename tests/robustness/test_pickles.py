"""Pickles that would run something: none does, and each is refused in one line; and nothing native is a pickle."""

import builtins
import contextlib
import copyreg
import functools
import importlib
import io
import os
import pickle
import posix
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import torch
from contract import Outcome

from s2ap_core.data.cifar10 import read_batch
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.foreign.formats import read_state
from s2ap_core.training.evaluation import load_evaluation
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


class Call:
    """Pickles as a call of ``function(*arguments)``, with a state to be set if there is one."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def text(value: str) -> bytes:
    """A short string as pickle protocol 4 writes it."""
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def crafted(witness: Path) -> dict[str, bytes]:
    """Pickles written opcode by opcode that would make the file ``witness``."""
    shell, python = f"touch {witness}", f"open({str(witness)!r}, 'w').close()"
    long = python.encode()
    unicode = b"X" + len(long).to_bytes(4, "little") + long
    reduce_system = b"(V" + shell.encode() + b"\ntR."
    return {
        "protocol 0": b"cos\nsystem\n" + reduce_system,
        "protocol 0, posix": b"cposix\nsystem\n" + reduce_system,
        "protocol 0, builtins of Python 2": b"c__builtin__\nexec\n(V" + long + b"\ntR.",
        "INST": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + shell.encode() + b"\no.",
        "NEWOBJ": b"\x80\2csubprocess\nPopen\n(]V" + shell.encode() + b"\natI01\n\x81.",
        "NEWOBJ_EX": b"\x80\4csubprocess\nPopen\nV" + shell.encode() + b"\n\x85}Vshell\nI01\ns\x92.",
        "STACK_GLOBAL": b"\x80\4" + text("builtins") + text("exec") + b"\x93" + unicode + b"\x85R.",
        "STACK_GLOBAL of memo": b"\x80\4"
        + text("exec")
        + b"\x940"
        + text("builtins")
        + b"h\0\x93"
        + unicode
        + b"\x85R.",
        "dotted": b"\x80\4" + text("shutil") + text("os.system") + b"\x93V" + shell.encode() + b"\n\x85R.",
        "EXT": b"\x80\2\x82\1" + unicode + b"\x85R.",
        "persistent id": b"\x80\2" + unicode + b"Q.",
        "PERSID": b"P" + long + b"\n.",
        "BUILD of a global": b"\x80\2cos\nsystem\n}V__name__\nVx\nsb.",
        "after the end": b"\x80\2}." + b"cos\nsystem\n" + reduce_system,
        "behind a state dict": b"\x80\2}Vstate_dict\n}scos\nsystem\n" + reduce_system,
        "in a key": b"\x80\2}cos\nsystem\n(V" + shell.encode() + b"\ntRNs.",
        "in a tuple, popped": b"\x80\2cos\nsystem\n(V" + shell.encode() + b"\ntR0}.",
    }


def reduced(witness: Path) -> dict[str, Any]:
    """Objects that pickle as calls that would make the file ``witness``."""
    shell, python = f"touch {witness}", f"open({str(witness)!r}, 'w').close()"
    inner = pickle.dumps(Call(os.system, shell))
    archive = io.BytesIO()
    torch.save(Call(os.system, shell), archive)
    storage = torch.UntypedStorage(16)
    tensor = torch.ones(4)
    return {
        "os.system": Call(os.system, shell),
        "posix.system": Call(posix.system, shell),
        "exec": Call(builtins.exec, python),
        "eval": Call(builtins.eval, python),
        "open": Call(open, str(witness), "w"),
        "compile": Call(builtins.compile, python, "x", "exec"),
        "import": Call(importlib.import_module, "antigravity"),
        "__import__": Call(builtins.__import__, "antigravity"),
        "subprocess": Call(subprocess.call, ["touch", str(witness)]),
        "os.mknod": Call(os.mknod, str(witness)),
        "shutil": Call(shutil.copyfile, __file__, str(witness)),
        "nested": Call(tuple, [Call(list, [Call(os.system, shell)])]),
        "in an argument": Call(np.dtype, Call(os.system, shell)),
        "in a state": Call(set, [], state={"x": Call(os.system, shell)}),
        "partial": Call(functools.partial(os.system, shell)),
        "partial as a value": functools.partial(os.system, shell),
        "getattr": Call(getattr, os, "system"),
        "map": Call(list, Call(map, exec, [python])),
        "copyreg": Call(copyreg._reconstructor, Call, object, None),  # type: ignore[attr-defined]
        "copyreg.__newobj__": Call(copyreg.__newobj__, subprocess.Popen, ["touch", str(witness)]),  # type: ignore[attr-defined]
        "pickle.loads": Call(pickle.loads, inner),
        "torch.load": Call(torch.load, str(witness)),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, archive.getvalue()),
        "torch.hub.load": Call(torch.hub.load, str(witness.parent), "x", "y", "local"),
        "torch.hub.download": Call(torch.hub.download_url_to_file, f"file://{__file__}", str(witness)),
        "torch.serialization": Call(torch.serialization.load, str(witness)),
        "torch.save": Call(torch.save, {}, str(witness)),
        "torch.from_file": Call(torch.from_file, str(witness), True, 16),
        "storage from a file": Call(torch.UntypedStorage.from_file, str(witness), True, 16),
        "np.load": Call(np.load, str(witness), None, True),
        "np.memmap": Call(np.memmap, str(witness), "u1", "w+", 0, (16,)),
        "ndarray.tofile": Call(getattr, np.zeros(3), "tofile"),
        "_rebuild_tensor": Call(torch._utils._rebuild_tensor, storage, 0, (10**9,), (1,)),
        "_rebuild_tensor behind": Call(torch._utils._rebuild_tensor, storage, 10**12, (1,), (1,)),
        "_rebuild_tensor before": Call(torch._utils._rebuild_tensor, storage, -(10**6), (1,), (1,)),
        "_rebuild_tensor_v2 hooks": Call(
            torch._utils._rebuild_tensor_v2, tensor.storage(), 0, (4,), (1,), False, Call(os.system, shell)
        ),
        "_rebuild_parameter": Call(torch._utils._rebuild_parameter, Call(os.system, shell), True, {}),
        "_rebuild_from_type_v2": Call(torch._tensor._rebuild_from_type_v2, os.system, type(tensor), (shell,), {}),
        "_rebuild_wrapper_subclass": Call(
            torch._utils._rebuild_wrapper_subclass, subprocess.Popen, torch.float32, (1,), (1,), 0, None, "cpu", False
        ),
        "sparse out of bounds": Call(
            torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (torch.tensor([[10**9]]), torch.ones(1), (2,))
        ),
        "a module": torch.nn.Linear(2, 2),
    }


def torch_files(witness: Path) -> Iterator[tuple[str, bytes]]:
    """Checkpoints with each of them in the place of a value, in the zip and in the legacy format."""
    state = {"conv1.weight": torch.ones(4, 1, 3, 3), "conv1.popup_scores": torch.rand(4, 1, 3, 3)}
    for what, value in reduced(witness).items():
        for legacy in (False, True):
            try:
                yield (
                    f"{what}, {'legacy' if legacy else 'zip'}",
                    mutate.saved({"state_dict": state, "x": value}, legacy),
                )
            except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
                continue  # torch cannot write this one in this format
    members = mutate.unzipped(mutate.saved(state))
    name = next(key for key in members if key.endswith("data.pkl"))
    for what, held in crafted(witness).items():
        yield f"{what}, data.pkl", mutate.zipped({**members, name: held}, 0)
        yield f"{what}, bare", held
        yield f"{what}, legacy", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + held


COMMANDS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "inspect": lambda path, _: ["inspect", path, "--keep", 0.3, "--network", "tiny"],
    "verify": lambda path, _: ["verify", path, "--keep", 0.3, "--network", "tiny"],
    "sharpness": lambda path, _: ["sharpness", path, "--keep", 0.3, "--network", "tiny", "--dataset", "prototypes"],
    "hamming": lambda path, _: ["hamming", path, path, "--keep", 0.3],
    "evaluate": lambda path, _: ["evaluate", path, "--keep", 0.3, "--network", "tiny", "--dataset", "prototypes"],
    "export": lambda path, out: ["export", path, "--out", out / "small.safetensors"],
    "run": lambda path, out: ["run", out / "config.toml", "--set", f"pretrain.checkpoint={path}", "--out", out / "run"],
}
CONFIG = 'data.name = "prototypes"\nnetwork.name = "tiny"\nevaluation.stages = []\n'

# Nothing of these runs, and they make plain values; a reader may take them or leave them.
HARMLESS = {"after the end", "sparse out of bounds", "copyreg"}


def test_code_in_a_checkpoint_never_runs(attempt: Callable[..., Outcome], fault_table: Any, tmp_path: Path) -> None:
    witness, folder, out = tmp_path / "witness", tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (out / "config.toml").write_text(CONFIG)
    broken = []
    for turn, (what, held) in enumerate(torch_files(witness)):
        suffix = (".pth", ".pt", ".pth.tar", ".tar")[turn % 4]
        path = folder / f"checkpoint{suffix}"
        path.write_bytes(held)
        name = list(COMMANDS)[turn % len(COMMANDS)]
        for each in {"inspect", name}:
            outcome = attempt(f"pickle / {each}", [*COMMANDS[each](path, out), "--quiet"], untouched=folder)
            refused = outcome.status == 2 and str(path) in outcome.stderr
            if witness.exists() or not (refused or what.partition(",")[0] in HARMLESS):
                broken.append((what, each, outcome))
        witness.unlink(missing_ok=True)
        path.unlink()
        shutil.rmtree(out / "run", ignore_errors=True)
    assert not broken, broken


def test_the_witnesses_would_have_been_made(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing: read without care, these do run."""
    witness = tmp_path / "witness"
    ran = []
    for what, held in crafted(witness).items():
        with contextlib.suppress(Exception):  # what runs may well return what the rest cannot use
            pickle.loads(held)
        if witness.exists():
            ran.append(what)
            witness.unlink()
    for what in ("os.system", "exec", "eval", "nested", "in an argument", "subprocess", "pickle.loads", "np.memmap"):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(reduced(witness)[what]))
        assert witness.exists(), what
        witness.unlink()
    assert {"protocol 0", "INST", "OBJ", "STACK_GLOBAL", "dotted", "in a key", "in a tuple, popped"} <= set(ran)


def test_code_in_a_pickled_batch_never_runs(attempt: Callable[..., Outcome], tmp_path: Path) -> None:
    witness, folder = tmp_path / "witness", tmp_path / "in"
    folder.mkdir()
    path = folder / "data_batch_1"
    files = list(crafted(witness).items())
    for what, value in reduced(witness).items():
        for protocol in (0, 2, 4, 5):
            try:
                files.append((f"{what}, {protocol}", pickle.dumps({"data": value, "labels": [0]}, protocol)))
            except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
                continue
    for what, held in files:
        path.write_bytes(held)
        call = ["data", "check", "cifar10", "--root", folder, "--quiet"]
        outcome = attempt("pickle / data check", call, untouched=folder)
        assert outcome.status == 2, what
        assert str(path) in outcome.stderr, what
        assert not witness.exists(), what
        with pytest.raises(InputError):
            read_batch(path)


class Kind:
    """A numpy type whose state says that it holds no objects, while it does."""

    def __reduce__(self) -> Any:
        return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)


class Addresses:
    """An array of such a type: read by numpy, its bytes are taken for addresses, and the process dies."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __reduce__(self) -> Any:
        entries = int(np.prod(self.shape))
        state = (1, self.shape, Kind(), False, b"\x41" * (8 * entries))
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_bytes_are_never_taken_for_addresses(tmp_path: Path, fault_table: Any, protocol: int) -> None:
    scalar = Call(np._core.multiarray.scalar, Kind(), b"\x41" * 8)  # type: ignore[attr-defined]
    images = np.zeros((4, 3072), np.uint8)
    path = tmp_path / "data_batch_1"
    for content in (
        {"data": Addresses(4, 3072), "labels": [0] * 4},
        {"data": images, "labels": Addresses(4)},
        {"data": images, "labels": [scalar] * 4},
        {"data": images, "labels": [0] * 4, "more": Addresses(4)},
        {"data": np.array([[None] * 3072]), "labels": [0]},
        {"data": np.zeros((1, 3072), [("a", "u1")]), "labels": [0]},
    ):
        path.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(InputError, match="refused, it asks for arrays of"):
            read_batch(path)
        fault_table.add("pickle / data check", True)
        torch.save({"conv1.weight": torch.ones(1), "x": content}, tmp_path / "checkpoint.pt")
        with pytest.raises(InputError):
            read_state(tmp_path / "checkpoint.pt")
        fault_table.add("pickle / inspect", True)


@pytest.mark.parametrize("name", ["V2000000000", "U500000000", "O", "M8[s]", "f8,f8", "(1000000,)f8"])
def test_a_numpy_type_of_a_checkpoint_is_a_number(tmp_path: Path, fault_table: Any, name: str) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(
        {
            "conv1.weight": torch.ones(1),
            "x": Call(type(np.float64(0)).__reduce__(np.float64(0))[0], Call(np.dtype, name)),
        },
        path,
    )
    with pytest.raises(InputError, match=f"{path}: "):
        read_state(path)
    fault_table.add("pickle / inspect", True)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_object_arrays_are_refused(attempt: Callable[..., Outcome], tmp_path: Path, suffix: str) -> None:
    witness, folder = tmp_path / "witness", tmp_path / "in"
    folder.mkdir()
    path = folder / f"mask_1{suffix}"
    array = np.array([Call(os.system, f"touch {witness}"), None], dtype=object)
    (np.save if suffix == ".npy" else np.savez)(path, array)
    outcome = attempt("pickle / hamming", ["hamming", path, path], untouched=folder)
    assert outcome.status == 2
    for held in crafted(witness).values():  # a bare pickle under the name of arrays
        path.write_bytes(held)
        assert attempt("pickle / hamming", ["hamming", path, path], untouched=folder).status == 2
    assert not witness.exists()
    for name in ("fog.npy", "labels.npy"):
        np.save(folder / name, array)
        assert attempt("pickle / data check", ["data", "check", "cifar10c", "--root", folder, "--quiet"]).status == 2
    assert not witness.exists()


def test_nothing_native_needs_a_pickle(
    attempt: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    short = "{ epochs = 1, batch_size = 20 }"
    stages = "".join(f"{stage} = {short}\n" for stage in ("pretrain", "prune", "finetune"))
    more = 'method = { name = "hydra", keep = 0.3 }\nevaluation = { attack = "none", n = 6 }\n'
    (tmp_path / "run.toml").write_text(CONFIG.replace("evaluation.stages = []\n", "") + stages + more)
    attempt("no pickle / run", ["run", tmp_path / "run.toml", "--out", run, "--quiet"])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was read")

    for module, names in (
        (pickle, ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads")),
        (torch, ("load",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    for file in sorted(run.rglob("*.safetensors")):
        load_tensors(file)
    for file in sorted((run / "masks").iterdir()):
        assert masks_in(file)
    for stage in ("pretrain", "prune", "finetune"):
        assert len(load_evaluation(run / "evals" / f"{stage}.npz").label) == 6
    measure = ["--images", 8, "--iterations", 1, "--no-loss-difference", "--quiet"]
    (run / "results.json").unlink()
    for call in (
        ["inspect", run / "ckpt", "--quiet"],
        ["verify", run / "ckpt", "--quiet"],
        ["hamming", run / "masks", "--quiet"],
        ["sharpness", run / "ckpt" / "prune-best.safetensors", *measure],
        ["evaluate", run / "ckpt" / "finetune-best.safetensors", "--attack", "none", "--quiet"],
        ["run", "--resume", "--out", run, "--quiet"],
    ):
        assert attempt(f"no pickle / {call[0]}", call).status == 0
