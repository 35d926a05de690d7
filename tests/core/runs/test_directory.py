"""Files that are whole or not there, and damage that is found."""

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import s2ap_core.files.atomic
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.files.packed import load_packed
from s2ap_core.files.record import load_json
from s2ap_core.files.tensors import load_tensors, save_masks, save_tensors
from s2ap_core.runs.directory import METRICS, RunDirectory, commit_of

HEADER = {"keep": 0.1, "stage": "prune", "epoch": 3, "network": {"name": "tiny", "width": None}}


@pytest.fixture
def saved(tmp_path):
    """A small file of tensors of every kind that a state holds."""
    tensors = {
        "weight": torch.arange(6.0).reshape(2, 3).T,
        "channels_last": torch.rand(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "double": torch.rand(3, dtype=torch.float64),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
    }
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, tensors, HEADER)
    return path, tensors


def test_tensors_and_header_come_back(saved):
    path, tensors = saved
    found, header = load_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert {k: v for k, v in header.items() if k != "sha256"} == HEADER
    assert len(header["sha256"]) == 64


def test_the_checksum_is_of_values_names_and_types(tmp_path):
    def checksum(**tensors):
        save_tensors(tmp_path / "one", tensors, {})
        return load_tensors(tmp_path / "one")[1]["sha256"]

    base = checksum(a=torch.zeros(4), b=torch.ones(4))
    assert checksum(b=torch.ones(4), a=torch.zeros(4)) == base
    others = [
        checksum(a=torch.ones(4), b=torch.zeros(4)),
        checksum(a=torch.zeros(2, 2), b=torch.ones(4)),
        checksum(a=torch.zeros(4, dtype=torch.int32), b=torch.ones(4)),
        checksum(a=torch.zeros(4), c=torch.ones(4)),
    ]
    assert len({base, *others}) == 5


def test_any_flipped_bit_of_the_tensors_is_found(saved):
    path, tensors = saved
    intact = path.read_bytes()
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    for position in range(len(intact) - size, len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="checksum does not fit"):
            load_tensors(path)
    path.write_bytes(intact)
    load_tensors(path)


def test_any_flipped_bit_of_the_header_is_found(saved):
    path, tensors = saved
    intact = path.read_bytes()
    start, end = intact.index(b"__metadata__"), intact.index(b"sha256")
    for position in range(start, end):
        damaged = bytearray(intact)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            found, header = load_tensors(path)
        except InputError:
            continue
        # What can be read is what was written.
        assert {k: v for k, v in header.items() if k != "sha256"} == HEADER
        assert found.keys() == tensors.keys()


def test_truncation_is_found_at_any_length(saved):
    path, _ = saved
    intact = path.read_bytes()
    for length in [*range(0, len(intact), 13), len(intact) - 1]:
        path.write_bytes(intact[:length])
        with pytest.raises(InputError, match=r"tensors\.safetensors: truncated") as error:
            load_tensors(path)
        assert "\n" not in str(error.value)


def test_files_that_are_missing_or_not_ours(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path / "missing")
    (tmp_path / "text").write_text("accuracy,1\n" * 20)
    with pytest.raises(InputError, match="not a safetensors file"):
        load_tensors(tmp_path / "text")
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign", {"format": "pt"})
    with pytest.raises(InputError, match="without our header"):
        load_tensors(tmp_path / "foreign")
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path)


@given(shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4), seed=st.integers())
@hypothesis_settings(deadline=None, max_examples=40)
def test_masks_come_back_in_the_networks_order(tmp_path_factory, shapes, seed):
    rng = torch.Generator().manual_seed(seed % 2**63)
    path = tmp_path_factory.mktemp("masks") / "epoch-000"
    masks = {
        f"layer{9 - i}.weight": (torch.rand(shape, generator=rng) < 0.4).transpose(0, -1)
        for i, shape in enumerate(shapes)
    }
    save_masks(path, masks, HEADER)
    found, header = load_packed(path)
    assert list(found) == list(masks)
    assert all(np.array_equal(found[n].unpack(), masks[n]) and found[n].unpack().dtype == bool for n in masks)
    assert header["keep"] == 0.1


def test_masks_take_a_bit_for_each_entry(tmp_path):
    save_masks(tmp_path / "mask", {"w": torch.rand(800, 100) < 0.5}, HEADER)
    assert (tmp_path / "mask").stat().st_size < 800 * 100 / 8 + 1000
    save_tensors(tmp_path / "scores", {"w": torch.rand(3)}, HEADER)
    with pytest.raises(InputError, match="not a mask file"):
        load_packed(tmp_path / "scores")


def test_a_mask_file_of_an_earlier_version_is_read_and_written_alike(tmp_path):
    """The checksum is of bytes and of torch's names of types, whoever computes it."""
    entries = torch.arange(30)
    masks = {"b.weight": (entries % 3 == 0).view(2, 15), "a.weight": entries[:7] % 2 == 0}
    save_masks(tmp_path / "masks", masks, {"epoch": 3, "keep": 0.1})
    found, header = load_packed(tmp_path / "masks")
    assert header["sha256"] == "3a5cce7d5ae26983a4b169067ca68548aaf6fe8006e25065fa51be5d9849e2e5"
    assert {name: mask.unpack().tolist() for name, mask in found.items()} == {n: m.tolist() for n, m in masks.items()}


def test_masks_are_read_and_files_written_without_torch(tmp_path):
    save_masks(tmp_path / "masks", {"w": torch.ones(3, 3).bool()}, {})
    program = """
        import sys
        from pathlib import Path
        from s2ap_core.files import arrays, atomic, packed
        masks, _ = packed.load_packed(Path("masks"))
        atomic.write_file(Path("kept"), str(masks["w"].kept))
        print(sorted({"torch", "pandas", "matplotlib"} & sys.modules.keys()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(s2ap_core.files.atomic.__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "kept").read_text() == "9"


@pytest.mark.parametrize(
    ("bits", "shapes", "said"),
    [
        (torch.zeros(2, dtype=torch.uint8), [9, 2], "cannot be a packed mask of 18 entries"),
        (torch.tensor([255, 255], dtype=torch.uint8), [9], "bits behind its last entry"),
        (torch.zeros(2), [9], "no packed mask of shape"),
        (torch.zeros(2, dtype=torch.bfloat16), [9], "not a safetensors file"),
        (torch.zeros(2, dtype=torch.uint8), [-9], "no packed mask of shape"),
    ],
)
def test_what_a_mask_file_says_of_its_bits_is_checked(tmp_path, bits, shapes, said):
    save_tensors(tmp_path / "masks", {"w": bits}, {"shapes": {"w": shapes}})
    with pytest.raises(InputError, match=said):
        load_packed(tmp_path / "masks")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_file(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(s2ap_core.files.atomic.os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"folder/file: cannot be written \(No space left on device\)"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_run_is_not_written_over(tmp_path, new_run, settings):
    run = new_run(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already; give --resume"):
        new_run(tmp_path / "run", prune={"epochs": 9})
    assert RunDirectory.open(tmp_path / "run").config == run.config == settings()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        new_run(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    new_run(tmp_path / "empty")


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"seed = [")
    with pytest.raises(InputError, match=r"config\.toml: not valid TOML"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.toml: not valid TOML"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.toml").write_text("method.keep = 2")
    with pytest.raises(InputError, match=r"config\.toml: method\.keep"):
        RunDirectory.open(tmp_path)


def test_of_a_csv_a_stage_drops_its_own_later_epochs_and_half_a_row_alone(tmp_path, new_run):
    run, file = new_run(tmp_path / "run"), tmp_path / "run" / "metrics.csv"
    run.append("metrics.csv", METRICS, [("prune", 0, "", "val_loss", 0.5), ("prune", 1, 0, 'a, "b"', 1e-9)])
    begun = file.read_bytes()
    run.append("metrics.csv", METRICS, [("prune", 2, 0, 'a, "b"', 1e-9), ("prune", 2, "", "val_loss", 0.25)])
    search = file.read_bytes()
    rows = list(csv.reader(file.open()))
    assert rows[0] == list(METRICS)
    assert rows[2] == ["prune", "1", "0", 'a, "b"', "1e-09"]
    file.write_bytes(search + b"prune,2")
    run.drop_rows("metrics.csv", "prune", after=2)
    assert file.read_bytes() == search
    run.append("metrics.csv", METRICS, [("finetune", 9, "", "val_loss", 0.1)])
    run.drop_rows("metrics.csv", "prune", after=1)
    assert file.read_bytes() == begun + b"finetune,9,,val_loss,0.1\n"
    run.drop_rows("metrics.csv", "finetune", after=-1)
    assert file.read_bytes() == begun
    run.drop_rows("timing.csv", "prune", after=1)
    assert not (tmp_path / "run" / "timing.csv").exists()
    for damage in (b"prune,one,,,\n", b"\n", b"\xff\n", b'prune,1,"a"b,,\n'):
        file.write_bytes(begun + damage)
        with pytest.raises(InputError, match=r"metrics\.csv: damaged \(.*\); bring it back"):
            run.drop_rows("metrics.csv", "prune", after=1)
        assert file.read_bytes() == begun + damage


def test_the_commit_is_that_of_the_source_and_of_no_repository_around_it(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    installed = tmp_path / "venv" / "package.py"
    installed.parent.mkdir()
    for file in (tmp_path / "source.py", installed):
        file.write_text("")
        assert commit_of(file) is None
    git("init", "--quiet")
    git("add", "source.py")
    git("commit", "--quiet", "--message", "one file")
    assert commit_of(tmp_path / "source.py") == git("rev-parse", "HEAD")
    assert commit_of(installed) is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit_of(tmp_path / "source.py") == git("--git-dir", str(tmp_path / ".git"), "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path / "source.py") is None  # git is not installed


def test_results_are_merged_and_environment_says_what_ran(tmp_path, new_run):
    run = new_run(tmp_path / "run", seed=7)
    run.add_results(pretrain={"epochs": 2})
    run.add_results(prune={"epochs": 3})
    run.add_results(pretrain={"epochs": 4})
    assert run.results() == {"pretrain": {"epochs": 4}, "prune": {"epochs": 3}}
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (found["seed"], found["device"]) == (7, "cpu")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["numpy"] == np.__version__
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json: not JSON"):
        run.results()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "missing"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_json_file_that_cannot_be_used_is_refused(tmp_path, content, said):
    file = tmp_path / "record.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=rf"record\.json: {said}.*; make it again"):
        load_json(file, dict, "make it again")


def test_leftovers_of_a_killed_process_are_removed(tmp_path, new_run):
    run = new_run(tmp_path / "run")
    write_file(run.checkpoint("prune-best"), "kept")
    leftover = run.path / "ckpt" / ".state-prune.safetensors.tmp"
    leftover.write_text("half")
    run.remove_leftovers()
    assert not leftover.exists()
    assert run.checkpoint("prune-best").read_text() == "kept"
