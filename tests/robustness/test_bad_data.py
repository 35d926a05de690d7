"""Damaged data sets, odd names and links, and bytes at random."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
import scipy.io
from bad_world import FOREIGN, SMALL, Attempt, World, all_of, commands_on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


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
    arrays = {name.removesuffix(".weight"): bits for name, bits in masks_in(world.mask).items()}
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
