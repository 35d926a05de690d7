"""Files and settings that ask for far more memory or time than their size explains: one line, and nothing taken."""

import os
import pickle
import signal
import time
from pathlib import Path

import mutate
import numpy as np
import psutil
import pytest
import scipy.io
import torch
from bad_world import FOREIGN, Attempt, World, commands_on

from s2ap_core.data.svhn import read_mat
from s2ap_core.errors import InputError
from s2ap_core.files import rehearsal
from s2ap_core.files.rehearsal import TooMuch, rehearse
from s2ap_core.foreign.formats import read_state

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")

MIB = 1 << 20
SIX_GIB = b"\x8a\x05" + (6 << 30).to_bytes(5, "little")
SHARED_TUPLES = b"K\1" + b"q\0h\0\x86" * 60
SHARED_LISTS = b"K\1q\x000" + b"](h\0h\0eq\x000" * 60 + b"h\0"

IN_A_CHECKPOINT = {
    "a bytearray": b"\x80\2}X\1\0\0\0xc__builtin__\nbytearray\n" + SIX_GIB + b"\x85Rs.",
    "a tensor of a size": b"\x80\2}X\1\0\0\0xctorch\nTensor\n" + SIX_GIB + b"\x85Rs.",
    "a key of shared tuples": b"\x80\2}" + SHARED_TUPLES + b"K\1s.",
}
IN_A_BATCH = {
    "a place far behind in the memo": b"\x80\2}r" + (0x1FFFFFFF).to_bytes(4, "little") + b".",
    "a key of shared tuples": b"\x80\2}" + SHARED_TUPLES + b"K\1s.",
}
SAID = {"a key of shared tuples": "takes too long"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of time are given a second."""
    monkeypatch.setattr(rehearsal, "SECONDS", 1)


@pytest.mark.parametrize("what", IN_A_CHECKPOINT)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_small_checkpoint(attempt: Attempt, world: World, folder: Path, what: str, legacy: bool) -> None:
    held, members = IN_A_CHECKPOINT[what], mutate.unzipped(mutate.saved({}))
    name = next(key for key in members if key.endswith("data.pkl"))
    begins = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    path = folder / "bomb.pt"
    path.write_bytes(begins + held if legacy else mutate.zipped({**members, name: held}, 0))
    calls = commands_on(path, world, FOREIGN, folder.with_name("out"))
    for command in ("inspect",) if what in SAID else ("inspect", "hamming", "evaluate"):
        outcome = attempt(f"bomb / {command}", calls[command], untouched=folder)
        assert outcome.status == 2
        assert f"{path}: refused, reading it {SAID.get(what, 'takes over')}" in outcome.stderr


@pytest.mark.parametrize("what", IN_A_BATCH)
def test_a_small_batch(attempt: Attempt, folder: Path, what: str) -> None:
    (folder / "data_batch_1").write_bytes(IN_A_BATCH[what])
    call = ["data", "check", "cifar10", "--root", folder, "--quiet"]
    outcome = attempt("bomb / data", call, untouched=folder)
    assert outcome.status == 2
    assert f"refused, reading it {SAID.get(what, 'takes over')}" in outcome.stderr


@pytest.mark.parametrize("entry", ["data", "labels"])
def test_lists_within_lists_that_are_the_same_ones(attempt: Attempt, folder: Path, entry: str) -> None:
    other = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    name = b"X" + len(entry).to_bytes(4, "little") + entry.encode()
    held = pickle.dumps({key: value for key, value in other.items() if key != entry}, 2)
    (folder / "data_batch_1").write_bytes(held[:-1] + name + SHARED_LISTS + b"s.")
    outcome = attempt("bomb / data", ["data", "check", "cifar10", "--root", folder, "--quiet"], untouched=folder)
    assert "its images are not an array" in outcome.stderr or "its labels are not a list" in outcome.stderr


def test_tensors_that_share_a_storage(attempt: Attempt, world: World, folder: Path) -> None:
    path = folder / "bomb.pt"
    storage = torch.zeros(4 * MIB)
    torch.save({f"layer{i}.weight": storage.view(2048, 2048) for i in range(64)}, path)
    for command in ("inspect", "hamming"):
        call = commands_on(path, world, FOREIGN, folder.with_name("out"))[command]
        outcome = attempt(f"bomb / {command}", call, untouched=folder)
        assert f"{path}: its tensors take 1,073,741,824 bytes" in outcome.stderr
    torch.save({f"layer{i}.weight": storage.view(2048, 2048) for i in range(4)}, path)  # tied weights are ordinary
    assert len(read_state(path).tensors) == 4


def test_a_cell_of_a_mat_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MEMORY", 64 * MIB)
    cell = np.empty((1, 1), object)
    cell[0, 0] = np.zeros(128 * MIB, np.uint8)
    path = folder / "train_32x32.mat"
    scipy.io.savemat(path, {"X": cell, "y": np.ones((1, 1))}, do_compression=True)
    del cell
    before = psutil.Process().memory_info().rss
    with pytest.raises(InputError, match="refused, reading it takes over"):
        read_mat(path)
    assert psutil.Process().memory_info().rss < before + 32 * MIB


@pytest.mark.parametrize("width", [10**6, 20_000])
def test_a_network_larger_than_the_machine(attempt: Attempt, folder: Path, width: int) -> None:
    setting, out = f"network.width={width}", folder / "run"
    calls = [
        ["run", "digits", "--scale", "digits", "--set", setting, "--out", out, "--quiet"],
        ["sweep", "claims", "--scale", "digits", "--set", setting, "--runs", out, "--quiet"],
        ["estimate", "digits", "--scale", "digits", "--set", setting, "--quiet"],
    ]
    for call in calls:
        outcome = attempt(f"memory / {call[0]}", call, untouched=folder)
        assert outcome.status == 2
        assert f"network.width = {width}: resnet18 takes " in outcome.stderr
        assert " TB of memory or more, this machine has" in outcome.stderr


def spin() -> None:
    while True:
        pass


def test_the_copy_is_another_process_and_ends() -> None:
    done: list[int] = []
    rehearse(lambda: done.append(1), 0)
    assert done == []
    children = psutil.Process().children()
    with pytest.raises(TooMuch, match=r"ends the process \(SIGSEGV"):
        rehearse(lambda: os.kill(os.getpid(), signal.SIGSEGV), 0)
    with pytest.raises(TooMuch, match="takes too long"):
        rehearse(spin, 0)
    assert psutil.Process().children() == children


def test_a_copy_that_waits_for_ever_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "WAITED", 1)
    with pytest.raises(TooMuch, match="takes too long"):
        rehearse(lambda: time.sleep(60), 0)


def test_what_is_free_bounds_what_is_read() -> None:
    with pytest.raises(TooMuch, match="of memory are free"):
        rehearse(list, 1 << 60)
