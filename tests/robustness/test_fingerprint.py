"""A run goes on with the config, images, network and code that it began with, or says what differs."""

import hashlib
import json
import shutil

import numpy as np
import processes
import pytest
from click.testing import CliRunner
from PIL import Image

from s2ap_core.config import EvaluationSettings
from s2ap_core.data import InMemory, load
from s2ap_core.errors import InputError
from s2ap_core.runs import identity
from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.definitions import WITHOUT_INFLUENCE, checksums, definitions, files_of
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.identity import differences
from s2ap_core.training.evaluation import evaluate, load_evaluation
from s2ap_core.training.loop import Callback
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


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's files, which is taken for the code that runs are made by."""
    copy = shutil.copytree(identity.PACKAGE, tmp_path / "s2ap_core", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "PACKAGE", copy)
    yield copy
    definitions.cache_clear()


def edit(file, before, after):
    """Replace a text that a file holds once; what a process read of it is forgotten."""
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))
    definitions.cache_clear()


def test_other_code_is_refused_naming_the_file_unless_forced_which_is_written_down(begun, sources):
    _, config, run = begun
    assert resume(config, run).exit_code == 0
    edit(sources / "masks" / "topk.py", "return int((1 - keep) * numel)", "return round((1 - keep) * numel)")
    key = "n_dropped (s2ap_core/masks/topk.py)"
    refused(resume(config, run), run, f"began with {key} = ")
    assert resume(config, run, "--force").exit_code == 0
    (forced,) = json.loads((run / "environment.json").read_text())["forced"]
    ((changed, values),) = forced["changed"].items()
    assert changed == key
    assert values["is"] == checksums(definitions(sources))["n_dropped"] != values["was"]
    assert resume(config, run).exit_code == 0  # it is known now


def test_a_run_of_files_that_were_moved_needs_no_force(begun, sources):
    _, config, run = begun
    (sources / "masks" / "topk.py").rename(sources / "selection.py")
    definitions.cache_clear()
    assert resume(config, run).exit_code == 0
    assert "forced" not in json.loads((run / "environment.json").read_text())


def test_the_one_checksum_that_earlier_versions_noted_is_refused_with_what_to_do(begun):
    _, config, run = begun
    noted = json.loads((run / "fingerprint.json").read_text())
    kept = {key: value for key, value in noted.items() if not key.startswith("code.source")}
    (run / "fingerprint.json").write_text(json.dumps({**kept, "code": {"source": "0123456789abcdef"}}))
    refused(resume(config, run), run, "code.source = 0123456789abcdef, now noted for each definition", "--force")
    assert resume(config, run, "--force").exit_code == 0
    (forced,) = json.loads((run / "environment.json").read_text())["forced"]
    assert list(forced["changed"]) == ["code.source"]
    assert json.loads((run / "fingerprint.json").read_text()) == noted


ONE = '''"""A module."""

import numpy as np
from elsewhere import K

LEAST = 1  # at least


def kept(n: int) -> int:
    """Number kept."""
    # As HYDRA counts.
    return max(n // K, LEAST)


class Mask:
    """A mask."""

    bits: int
    """How many."""

    def count(self) -> int:
        return kept(np.sum(self.bits))
'''


@pytest.fixture
def tiny_package(tmp_path):
    """A package of two modules, and what it defines after some files were written anew."""
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)

    def written(one=ONE, **files):
        for file in package.rglob("*.py"):
            file.unlink()
        for name, text in {"one": one, "inner/two": "TABLE = {}\nTABLE['a'] = 1\n", **files}.items():
            (package / f"{name}.py").write_text(text)
        definitions.cache_clear()
        return definitions(package)

    yield written
    definitions.cache_clear()


def test_each_definition_has_a_checksum_and_a_file(tiny_package):
    found = tiny_package()
    assert list(found) == ["LEAST", "Mask", "TABLE", "kept"]
    assert {name: list(of.values()) for name, of in found.items() if name != "TABLE"} == {
        name: [["package/one.py"]] for name in ("LEAST", "Mask", "kept")
    }
    assert list(found["TABLE"].values()) == [["package/inner/two.py"]] * 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# As HYDRA counts.", "# As others count."),
        ('    """Number kept."""\n', ""),
        ('"""How many."""', '"""Of them."""'),
        ('"""A mask."""', '"""One mask."""'),
        ('"""A module."""', '"""The module."""'),
        ("from elsewhere import K", "from here.and_there import K"),
        ("max(n // K, LEAST)", "max(\n        n // K,\n        LEAST,\n    )"),
        ("    # As HYDRA counts.\n", "    from elsewhere import L\n\n"),
    ],
)
def test_words_layout_and_imports_change_nothing(tiny_package, before, after):
    assert before in ONE
    assert checksums(tiny_package()) == checksums(tiny_package(ONE.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("n // K", "n / K", "kept"),
        ("max(n", "min(n", "kept"),
        ("LEAST = 1", "LEAST = 2", "LEAST"),
        ("LEAST = 1", 'LEAST = "1"', "LEAST"),
        ("bits: int", "bits: float", "Mask"),
        ("np.sum(self.bits)", "np.sum(~self.bits)", "Mask"),
        ("    def count", "    @property\n    def count", "Mask"),
    ],
)
def test_a_change_is_of_its_definition_and_file_alone(tiny_package, before, after, name):
    assert before in ONE
    first = checksums(tiny_package())
    found = tiny_package(ONE.replace(before, after))
    assert [key for key, value in checksums(found).items() if first[key] != value] == [name]
    assert files_of(name, first[name], found) == ["package/one.py"]


def test_a_moved_definition_changes_nothing_and_a_second_of_its_name_is_found_beside_it(tiny_package):
    first = checksums(tiny_package())
    start = ONE.index("def kept")
    end = ONE.index("class Mask")
    moved = tiny_package(ONE[:start] + ONE[end:], three=f"from one import LEAST\n\n\n{ONE[start:end]}")
    assert checksums(moved) == first
    assert list(moved["kept"].values()) == [["package/three.py"]]
    found = tiny_package(three="def kept(n):\n    return n\n")
    assert set(first["kept"].split()) < set(checksums(found)["kept"].split())
    assert files_of("kept", first["kept"], found) == ["package/three.py"]


def test_what_is_left_out_is_there():
    assert all((identity.PACKAGE / path).exists() for path in WITHOUT_INFLUENCE)
    files = {file for of in definitions(identity.PACKAGE).values() for places in of.values() for file in places}
    assert {"s2ap_core/masks/topk.py", "s2ap_core/training/iteration.py"} <= files
    assert not any(file.startswith(f"s2ap_core/{path}") for path in WITHOUT_INFLUENCE for file in files)


def test_another_network_under_the_same_name_is_refused(begun, monkeypatch):
    _, config, run = begun
    noted = json.loads((run / "fingerprint.json").read_text())
    noted["network.conv1.weight"] = [2, 3, 5, 5]
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
        assert "fingerprint.json: " in outcome.stderr


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
    said = r"evals\.npz: evaluated on other images; move the file away"
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


def edit_config(run, before, after):
    """Change ``config.toml`` by hand."""
    file = run.path / "config.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


@pytest.mark.usefixtures("tiny_network")
def test_a_config_that_was_edited_is_refused_unless_forced_which_is_written_down(tmp_path, new_run, data):
    run = new_run(tmp_path / "run")
    Stages(run, data).all("pretrain")
    (run.path / "config.toml").write_text(run.config.model_copy(update={"title": "another"}).to_toml())
    Stages(RunDirectory.open(run.path), data).all("pretrain")
    edit_config(run, "keep = 0.3", "keep = 0.25")
    edited, before = RunDirectory.open(run.path), processes.contents(run.path)
    with pytest.raises(InputError, match=r"began with method.keep \(config.toml\) = 0.3, now 0.25; .* --force"):
        Stages(edited, data).all()
    assert processes.contents(run.path) == before
    identity.accept_changes(edited, data)
    (forced,) = edited.environment()["forced"]
    assert forced["changed"] == {"method.keep (config.toml)": {"was": 0.3, "is": 0.25}}
    Stages(edited, data).all()


@pytest.mark.usefixtures("tiny_network")
def test_a_config_that_is_edited_under_a_run_stops_it_before_it_says_anything(tmp_path, new_run, data):
    run = new_run(tmp_path / "run")

    class Edit(Callback):
        def on_iteration(self, loop, step):
            if loop.stage == "prune" and (loop.epoch, loop.iteration) == (1, 0):
                edit_config(run, "keep = 0.3", "keep = 0.25")

    with pytest.raises(InputError, match=r"began with method.keep \(config.toml\) = 0.3, now 0.25"):
        Stages(run, data, callbacks=[Edit()]).all()
    assert run.results().keys() == {"pretrain"}
    edit_config(run, "keep = 0.25", "keep = 0.3")
    Stages(run, data).all()
    assert "evaluate-finetune" in run.results()


@pytest.mark.usefixtures("tiny_network")
def test_a_run_of_a_version_that_noted_no_settings_goes_on(tmp_path, new_run, data):
    run = new_run(tmp_path / "run")
    Stages(run, data).all("pretrain")
    noted = json.loads((run.path / identity.FILE).read_text())
    older = {key: value for key, value in noted.items() if not key.startswith("config.")}
    (run.path / identity.FILE).write_text(json.dumps(older))
    Stages(run, data).all("pretrain")
