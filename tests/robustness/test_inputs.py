"""Pipes and devices among what is read are refused at once, and images start no other program."""

import json
import os
import shutil
from pathlib import Path

import pytest
from bad_world import FOREIGN, Attempt, World, commands_on
from PIL import EpsImagePlugin, Image

from s2ap_core.data import load
from s2ap_core.errors import InputError

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")

SAID = {"pipe": "a pipe, where a file is to be read", "device": "a device, where a file is to be read"}


def put(path: Path, kind: str) -> None:
    """Put a pipe that nobody writes to, or a device that never ends, in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_none(images: Path, tmp_path: Path, kind: str, workers: int) -> None:
    shutil.copytree(images, tmp_path / "images")
    put(tmp_path / "images" / "val" / "cat" / "1.png", kind)
    data = load("imagenet", tmp_path / "images", size=8, workers=workers)
    with pytest.raises(InputError, match=f"1.png: {SAID[kind]}"):
        list(data.batches("test", 6))


def test_a_postscript_file_called_an_image_starts_no_program(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "bin").mkdir()
    interpreter = tmp_path / "bin" / "gs"
    interpreter.write_text(f"#!/bin/sh\necho started > {tmp_path / 'started'}\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    Image.new("RGB", (16, 16)).save(tmp_path / "page.eps")
    page = tmp_path / "images" / "val" / "cat" / "1.png"
    (tmp_path / "page.eps").replace(page)
    with pytest.raises(OSError):  # noqa: PT011 - what Pillow says of a program that draws nothing is its affair
        Image.open(page).load()
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    with pytest.raises(InputError, match=r"1\.png: not an image that can be decoded"):
        list(load("imagenet", tmp_path / "images", size=8, workers=0).batches("test", 6))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", SAID)
def test_a_checkpoint_or_mask_that_is_none(attempt: Attempt, world: World, folder: Path, kind: str) -> None:
    for name in ("x.safetensors", "x.pt", "x.npz"):
        put(folder / name, kind)
        for command, call in commands_on(folder / name, world, FOREIGN, folder.with_name("out")).items():
            outcome = attempt(f"{kind} / {command}", call, untouched=folder)
            assert outcome.status == 2
            assert f"{folder / name}: " in outcome.stderr


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize(
    "name", ["results.json", "environment.json", "fingerprint.json", "metrics.csv", "timing.csv", "evals/prune.npz"]
)
def test_a_file_of_a_run_that_is_none(attempt: Attempt, world: World, tmp_path: Path, kind: str, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    (run / "results.json").unlink()  # so that every stage looks at its files again
    put(run / name, kind)
    outcome = attempt(f"{kind} / run --resume", ["run", "--resume", "--out", run, "--quiet"])
    assert outcome.status == 2
    assert f"{run / name}: {SAID[kind]}" in outcome.stderr


@pytest.mark.parametrize("kind", SAID)
def test_a_table_a_config_a_benchmark_and_a_batch_that_are_none(attempt: Attempt, folder: Path, kind: str) -> None:
    for name in ("data_batch_1", "fog.npy", "train_32x32.mat", "file", "file.toml"):
        put(folder / name, kind)
    out = folder.with_name("out")
    calls = [
        ["data", "check", "cifar10", "--root", folder, "--quiet"],
        ["data", "check", "cifar10c", "--root", folder, "--quiet"],
        ["data", "check", "svhn", "--root", folder, "--quiet"],
        ["run", folder / "file.toml", "--out", out, "--quiet"],
        ["estimate", folder / "file.toml", "--quiet"],
        ["estimate", "table1", "--benchmark", folder / "file", "--quiet"],
        ["sweep", folder / "file.toml", "--runs", out, "--quiet"],
    ]
    for call in calls:
        assert attempt(f"{kind} / {call[0]}", call, untouched=folder).status == 2, json.dumps(call, default=str)
