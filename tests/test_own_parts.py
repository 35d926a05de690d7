"""Networks, data sets, methods and objectives of the user's, named on the command line, from outside the packages."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from s2ap_core.data import load
from s2ap_core.files import code
from s2ap_core.models import NETWORKS, build
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.commands import main
from tests.own_page import EXAMPLE, refusal, work_in


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the page's files; nothing in it has been named yet."""
    (tmp_path / "small.toml").write_text('data.name = "digits"\n')
    return work_in(tmp_path, monkeypatch)


def refused(*arguments: str) -> str:
    """The one line of a refusal."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
    return result.stderr


def test_the_pages_example(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, the first in a process of its own; then resume, and what names no code of the user's."""
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 60
    command = [sys.executable, "-m", "s2ap_diag", "run", "mine.toml", "--out", "run", "--quiet"]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    results = json.loads((here / "run" / "results.json").read_text())
    assert results["evaluate-finetune"]["clean_accuracy"] > 0.9  # stripes: by this network, these images, this loss
    config = RunDirectory.open(here / "run").config
    assert (config.network.options, config.method.options) == ({"hidden": 8}, {"power": 0.5})

    (copy,) = (here / "run" / "code").iterdir()
    assert copy.read_text() == EXAMPLE
    noted = json.loads((here / "run" / "fingerprint.json").read_text())
    assert {noted[f"parts.mine.py:{part}"] for part in ("Net", "stripes", "Damped", "hinge")} == {copy.stem[5:]}

    checkpoint = "run/ckpt/prune-best.safetensors"
    assert "network mine.py:Net: a file that is read runs no code" in refused("inspect", checkpoint)
    named = ["--network", "mine.py:Net", "--dataset", "mine.py:stripes", "--objective", "mine.py:hinge"]
    small = ["--images", "20", "--batch-size", "20", "--rho", "0.01", "--json", "-"]
    found = CliRunner().invoke(main, ["sharpness", checkpoint, *named, *small])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)[0]["n_scores"] == 8 * 9 + 2 * 8
    monkeypatch.setattr(code, "named", set())
    assert CliRunner().invoke(main, ["hamming", "run/masks"]).exit_code == 0
    assert CliRunner().invoke(main, ["report", "run", "--quiet"]).exit_code == 0

    (here / "mine.py").write_text(EXAMPLE.replace("0.7 *", "0.6 *"))
    monkeypatch.setattr(code, "named", set())
    message = refused("run", "--resume", "--out", "run", "--quiet")
    assert "began with" in message
    assert "mine.py:stripes" in message
    (here / "mine.py").write_text(EXAMPLE)
    assert CliRunner().invoke(main, ["run", "--resume", "--out", "run", "--quiet"]).exit_code == 0


COMMANDS = {
    "inspect": "",
    "verify": "",
    "evaluate": "--attack none --n 4",
    "sharpness": "--images 4 --no-loss-difference --iterations 1",
    "hamming": "",
}
TRAP = "from pathlib import Path\nPath('ran').touch()\nfrom s2ap_core.models.resnet_cifar import ResNet18\n"


def test_a_checkpoint_names_no_code_that_runs(here: Path, narrow: Callable[..., torch.nn.Module]) -> None:
    """Neither a file nor an importable module, in ``network``, ``dataset``, ``objective`` or ``method``."""
    from s2ap_core.runs.checkpoints import save_checkpoint

    (here / "trap.py").write_text(TRAP)
    for name in ("trap.py:ResNet18", "trap:ResNet18"):
        described = {"name": name, "classes": 10, "width": 4, "input_size": 8, "input_channels": 1}
        whole = {"name": "resnet18", "classes": 10, "width": 4, "input_size": 8, "input_channels": 1}
        headers = [
            {"network": described},
            {"network": whole, "dataset": name},
            {"network": whole, "dataset": "digits", "method": name, "objective": {"name": name}},
        ]
        for header in headers:
            save_checkpoint(here / "a.safetensors", narrow("resnet18"), {"keep": 1.0, "stage": "pretrain", **header})
            for command, options in COMMANDS.items():
                CliRunner().invoke(main, [command, "a.safetensors", "--quiet", *options.split()])
            assert not (here / "ran").exists()
    assert CliRunner().invoke(main, ["inspect", "a.safetensors", "--network", "trap.py:ResNet18"]).exit_code == 0
    save_checkpoint(
        here / "a.safetensors", narrow("resnet18"), {"keep": 1.0, "stage": "pretrain", "network": described}
    )
    assert CliRunner().invoke(main, ["inspect", "a.safetensors", "--network", "trap.py:ResNet18"]).exit_code == 0
    assert (here / "ran").exists()


NN = "from torch import nn\n"
BAD = {
    "x = 1\n\nboom = 1 / 0\n": "bad.py:3: ZeroDivisionError",
    "def part(:\n": "bad.py:1: SyntaxError",
    "import not_a_package\n": "bad.py:1: ModuleNotFoundError",
    "raise SystemExit(3)\n": "bad.py:1: SystemExit",
    "other = 1\n": "has nothing to call named 'part'",
    "def part(classes):\n    return classes\n": "returns a int; return an nn.Module",
    "def part(classes):\n    x = []\n    return x[3]\n": "bad.py:3: IndexError",
    f"{NN}part = lambda **k: nn.Linear(3, 2)\n": "on images of [1, 8, 8]",
    f"{NN}part = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n": "gives [2, 3] for two",
    f"{NN}class part(nn.Module):\n    def forward(self, x):\n        return y\n": "bad.py:4: NameError",
}


@pytest.mark.parametrize("code", BAD)
def test_bad_code_is_one_line(code: str, here: Path) -> None:
    (here / "bad.py").write_text(code)
    assert BAD[code] in refused("run", "small.toml", "--out", "out",
                                "--set", "network.name=bad.py:part")  # fmt: skip
    assert not (here / "out").exists()


def test_other_bad_parts(here: Path) -> None:
    (here / "bad.py").write_text(
        "def loader(root):\n    return [[1.0], [2.0], [3.0]]\n\n"
        "def keyed():\n    return [{'image': 1, 'caption': 'x'}]\n\n"
        "def nothing(*a):\n    return 3\n"
    )
    common = ["run", "small.toml", "--out", "out"]
    for setting, message in {
        "data.name=bad.py:loader": "a batch without labels (list)",
        "data.name=bad.py:keyed": "a batch without labels (keys image, caption)",
        "data.name=bad.py:nothing": "a int is no data set",
        "data.name=gone.py:load": "gone.py: cannot be read (No such file or directory)",
        "method.name=bad.py:nothing": "returns a int; return an s2ap_core.methods.Method",
        "objective.name=bad.py:nothing": "returns a int; return an Objective",
        "network.options.depth=3": "network resnet18",
        "objective.options.margin=3": "objective trades takes no option margin",
        "method.options.power=3": "method hydra takes no option power",
        "network.name=mynet": "FILE.py:FACTORY",
    }.items():
        assert message in refused(*common, "--set", setting), setting
    assert "takes no width" in refused(*common, "--set", "network.name=mine.py:Net", "--set", "network.width=4")
    for option in ("network.options.hidden=true", "network.options.hidden=a", "network.options.deep=1"):
        assert option.split("=")[0].split(".")[2] in refused(
            *common, "--set", "network.name=mine.py:Net", "--set", option
        )
    assert not (here / "out").exists()


def test_an_entry_point_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("from tests.tiny import Tiny as Net\n")
    (tmp_path / "theirs-1.0.dist-info").mkdir()
    (tmp_path / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (tmp_path / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[s2ap_diag.networks]\ntheirs = theirs:Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert NETWORKS.knows("theirs")
    assert type(build("theirs", input_channels=1)).__name__ == "Tiny"
    assert "theirs" in refusal(lambda: build("nobodys"))


# --- data sets ---


def images_of(name: str, split: str = "train", **options: object) -> tuple[np.ndarray, list[int]]:
    (batch,) = load(name, **options).batches(split, 1000)  # type: ignore[arg-type]
    return batch.x.numpy(), batch.y.tolist()


def test_an_npz_of_x_and_y(here: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50, 6, 6, 3), dtype=np.uint8), np.arange(50) % 5
    np.savez(here / "a.npz", x=x, y=y)
    splits = {split: images_of("a.npz", split) for split in ("train", "val", "test")}
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 36, "val": 4, "test": 10}
    assert sorted(splits["test"][1]) == sorted([*range(5)] * 2)
    found = {
        image.tobytes(): label
        for images, labels in splits.values()
        for image, label in zip(images, labels, strict=True)
    }
    expected = {
        (row.transpose(2, 0, 1).astype(np.float32) / 255).tobytes(): int(c) for row, c in zip(x, y, strict=True)
    }
    assert found == expected
    floats = rng.random((30, 6, 6))
    np.savez(here / "b.npz", x_train=floats, y_train=y[:30, None], x_test=floats[:10], y_test=y[:10])
    train, labels = images_of("b.npz", "test")
    assert np.array_equal(train, floats[:10, None].astype(np.float32))
    assert labels == y[:10].tolist()


@pytest.mark.parametrize(("held", "message"), [
    ({"x": np.zeros((9, 1, 4, 4)), "z": np.zeros(9, int)}, "save x and y"),
    ({"x": np.zeros((9, 1, 4, 4)) + 2, "y": np.arange(9) % 3}, "beyond [0, 1]"),
    ({"x": np.full((9, 1, 4, 4), np.nan), "y": np.arange(9) % 3}, "beyond [0, 1]"),
    ({"x": np.zeros((9, 1, 4, 5)), "y": np.arange(9) % 3}, "square"),
    ({"x": np.zeros((9, 1, 4, 4)), "y": np.arange(8) % 3}, "labels"),
    ({"x": np.zeros((9, 1, 4, 4)), "y": np.zeros(9)}, "labels"),
    ({"x": np.zeros((9, 1, 4, 4)), "y": np.arange(9) - 3}, "labels"),
])  # fmt: skip
def test_an_npz_that_is_no_data_set(held: dict[str, np.ndarray], message: str, here: Path) -> None:
    np.savez(here / "a.npz", **held)
    said = refusal(lambda: load("a.npz"))
    assert said.startswith("a.npz: ")
    assert message in said


def test_a_folder_for_each_class(here: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (here / "pets" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((5, 5, 3), 20 + 100 * label, np.uint8) + rng.integers(0, 9, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(here / "pets" / split / name / f"{i}.png")
    x, y = images_of("pets", "test")
    assert [int(image.mean() > 0.3) for image in x] == y
    assert len(set(y[:3])) == 2
    assert images_of("pets", size=8)[0].shape[1:] == (3, 8, 8)
    assert {len(images_of("pets", split)[1]) for split in ("train", "val")} == {18, 2}
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(here / "pets" / "train" / "cat" / "x.png")
    assert "data.options.size" in refusal(lambda: load("pets"))
    (here / "pets" / "train" / "cat" / "x.png").write_bytes(b"no image")
    assert "x.png: not an image" in refusal(lambda: load("pets"))


def test_whatever_a_factory_returns(here: Path) -> None:
    """The same images as a torch Dataset, a shuffling DataLoader, batches and arrays."""
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    pairs = TensorDataset(x, y)
    batches = [(x[i : i + 7], y[i : i + 7]) for i in range(0, 30, 7)]
    forms = {
        "dataset": pairs,
        "loader": DataLoader(pairs, batch_size=7, shuffle=True),
        "batches": batches,
        "dicts": [{"pixel_values": a, "labels": b} for a, b in batches],
        "arrays": (x.numpy(), y.numpy()),
    }
    from s2ap_core.data.own import adapt

    sums = {name: adapt("mine", form).checksum("train") for name, form in forms.items()}
    assert len(set(sums.values())) == 1
    split = adapt("mine", {"train": pairs, "test": forms["loader"]})
    assert torch.equal(next(iter(split.batches("test", 30))).x, x)
    assert adapt("mine", (pairs, pairs)).checksum("test") == split.checksum("test")
