"""A run goes on with the config, images, network and code that it began with, or says what differs."""

import hashlib
import json
import shutil

import numpy as np
import processes
import pytest
from click.testing import CliRunner
from PIL import Image

import s2ap_core.runs.identity
from s2ap_core.config import EvaluationSettings
from s2ap_core.data import InMemory, load
from s2ap_core.errors import InputError
from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import differences, source_checksum
from s2ap_core.training.evaluation import evaluate, load_evaluation
from s2ap_core.training.stages import Stages
from s2ap_diag.commands import main


@pytest.fixture
def begun(tmp_path):
    """A finished run with images of its own: folder, config, run."""
    images = shutil.copytree(processes.all_images(), tmp_path / "images")
    config = tmp_path / "tiny.toml"
    config.write_text(processes.CONFIG.format(root=images))
    run = shutil.copytree(processes.uninterrupted(), tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(str(processes.all_images()), str(images)))
    return tmp_path, config, run


def resume(config, run, *options):
    return CliRunner().invoke(main, processes.command(config, run, *options))


def refused(outcome, run, *words):
    assert outcome.exit_code == 2, outcome.output
    (line,) = outcome.stderr.splitlines()
    for word in (str(run), "began with", "--force", *words):
        assert word in line, line


def recolour(path):
    """Another picture of the same name: larger, as pictures differ in size."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def rename(path):
    path.rename(path.with_name("other.png"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: recolour(root / "val" / "class1" / "03.png"), ["data.test.checksum = "]),
        (lambda root: rename(root / "val" / "class2" / "05.png"), ["data.test.checksum = "]),
        (lambda root: (root / "val" / "class2" / "05.png").unlink(), ["data.test.images = 24, now 23"]),
        (lambda root: (root / "train" / "class0" / "00.png").unlink(), ["data.train.images = 76, now 75"]),
    ],
)
def test_other_images_are_refused(begun, spoil, words):
    folder, config, run = begun
    assert resume(config, run).exit_code == 0
    before = processes.contents(run)
    spoil(folder / "images")
    refused(resume(config, run), run, *words)
    assert processes.contents(run) == before


def test_other_code_is_refused_unless_forced_which_is_written_down(begun, monkeypatch):
    _, config, run = begun
    monkeypatch.setattr(s2ap_core.runs.identity, "source_checksum", lambda: "f00d")
    refused(resume(config, run), run, f"code.source = {source_checksum()}, now f00d")
    assert resume(config, run, "--force").exit_code == 0
    (forced,) = json.loads((run / "environment.json").read_text())["forced"]
    assert forced["changed"] == {"code.source": {"was": source_checksum(), "is": "f00d"}}
    assert resume(config, run).exit_code == 0  # it is known now


def test_another_network_under_the_same_name_is_refused(begun, monkeypatch):
    _, config, run = begun
    noted = json.loads((run / "fingerprint.json").read_text())
    noted["network"]["conv1.weight"] = [2, 3, 5, 5]
    (run / "fingerprint.json").write_text(json.dumps(noted))
    refused(resume(config, run), run, "network.conv1.weight = [2, 3, 5, 5], now [2, 3, 3, 3]")


def test_another_config_is_refused_unless_forced_which_is_written_down(begun):
    _, config, run = begun
    config.write_text(config.read_text().replace("gamma = 0.01", "gamma = 0.02"))
    refused(resume(config, run), run, "minimizer.gamma = 0.01, now 0.02")
    assert RunDirectory.open(run).config.minimizer.gamma == 0.01
    assert resume(config, run, "--force").exit_code == 0
    assert RunDirectory.open(run).config.minimizer.gamma == 0.02
    (forced,) = json.loads((run / "environment.json").read_text())["forced"]
    assert forced["changed"] == {"minimizer.gamma": {"was": 0.01, "is": 0.02}}
    assert CliRunner().invoke(main, ["run", str(config), "--out", str(run / "new"), "--force"]).exit_code == 2


def test_another_library_is_said_once_and_not_refused(begun):
    _, config, run = begun
    file = run / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"torch": "1.0"}))
    outcome = CliRunner().invoke(main, ["run", str(config), "--out", str(run), "--resume"])
    assert outcome.exit_code == 0
    assert outcome.stderr.count("began with torch 1.0, now") == 1


def test_what_a_run_noted_can_be_damaged(begun):
    _, config, run = begun
    for text in ("{", "[]"):
        (run / "fingerprint.json").write_text(text)
        outcome = resume(config, run)
        assert outcome.exit_code == 2
        assert "fingerprint.json: damaged" in outcome.stderr


@pytest.mark.usefixtures("tiny_network")
def test_a_run_that_goes_on_from_another_is_held_to_its_images(tmp_path, new_run, settings, data):
    source = new_run(tmp_path / "source")
    Stages(source, data).all("pretrain")
    run = continue_from(source.path, tmp_path / "run", settings(), "pretrain", "cpu")
    splits = {split: tuple(part.numpy().copy() for part in data._split(split)) for split in ("train", "val", "test")}
    splits["val"][0][0, 0, 0, 0] ^= 1  # one bit of one pixel
    with pytest.raises(InputError, match=r"data\.val\.checksum"):
        Stages(run, InMemory("prototypes", 10, splits)).all()
    Stages(run, data).all()


def test_an_evaluation_goes_on_with_its_own_images_alone(tmp_path, narrow, data):
    model, file, quick = narrow("tiny"), tmp_path / "evals.npz", EvaluationSettings(attack="pgd-50", n=12, batch_size=6)

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        evaluate(model, data, quick, eps=8 / 255, file=file, on_batch=stop)
    assert len(load_evaluation(file).label) == 6
    before = file.read_bytes()
    images, labels = (part.numpy().copy() for part in data._split("test"))
    images[20, 0, 0, 0] ^= 1
    other = InMemory("prototypes", 10, {"test": (images, labels)})
    said = rf"evals\.npz: evaluated with images = {data.checksum('test')}, now {other.checksum('test')}"
    with pytest.raises(InputError, match=said):
        evaluate(model, other, quick, eps=8 / 255, file=file)
    assert file.read_bytes() == before
    assert len(evaluate(model, data, quick, eps=8 / 255, file=file).label) == 12


def test_the_checksum_is_of_bytes_classes_and_order():
    data = load("digits")
    images, labels = (part.numpy() for part in data._split("test"))
    digest = hashlib.sha256(b"10 16 0 False")
    digest.update(str(list(images.shape)).encode() + images.tobytes())
    digest.update(str(list(labels.shape)).encode() + labels.tobytes())
    assert data.checksum("test") == digest.hexdigest()[:16]
    swapped = InMemory("digits", 10, {"test": (images[::-1].copy(), labels[::-1].copy())}, scale=16)
    assert swapped.checksum("test") != data.checksum("test")
    with pytest.raises(InputError, match="no val split"):
        swapped.checksum("val")


def test_differences_are_named_by_dotted_key():
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 5}
    assert differences(before, {"a": {"b": 1, "c": [1, 3]}, "f": 2, "e": 5}) == {
        "a.c": ([1, 2], [1, 3]),
        "f": (None, 2),
    }
