"""What the user's own code and images are held to: nothing is overwritten, run unasked, or read as something else."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import s2ap_diag
from s2ap_core.config import parts
from s2ap_core.data import Dataset, load
from s2ap_core.data.own import adapt
from s2ap_core.files import code
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.foreign.published import last_linear, with_linear_head
from s2ap_core.masks.masking import attach_masks, masks
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.presets.read import parse_file
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import select_masks
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.commands import main
from s2ap_diag.comparison.evidence import gather
from s2ap_diag.output.destinations import check_destinations
from s2ap_diag.reading.results import collect
from s2ap_diag.reading.source import Source
from tests.own_page import CONFIG, EXAMPLE, refusal, work_in

CHECKPOINT = "run/ckpt/prune-best.safetensors"
SHORT = ("pretrain.epochs=1", "prune.epochs=2", "evaluation.attack=none")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the page's files; nothing in it has been named yet."""
    return work_in(tmp_path, monkeypatch)


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the page's parts, none of which is named any more."""
    changes = [word for change in SHORT for word in ("--set", change)]
    ended = CliRunner().invoke(main, ["run", "mine.toml", "--out", "run", "--quiet", *changes])
    assert ended.exit_code == 0, ended.output
    monkeypatch.setattr(code, "named", set())
    return here / "run"


def test_no_result_is_written_over_code_or_images(here: Path) -> None:
    """Whatever option names them, and by any path; the options of a command that reads both."""
    np.savez("d.npz", x=np.zeros((40, 1, 6, 6), np.uint8), y=np.arange(40) % 2)
    Path("pets/cat").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save("pets/cat/1.png")
    (here / "way").symlink_to(here)
    mistakes = [
        ("--network", "mine.py:Net", "mine.py"),
        ("--network", "mine:Net", "mine.py"),
        ("--network", "./mine.py:Net", "way/mine.py"),
        ("--dataset", "d.npz", "d.npz"),
        ("--dataset", "pets", "pets/cat/1.png"),
        ("--objective", "mine.py:hinge", "mine.py"),
    ]
    for option, given, out in mistakes:
        before = Path(out).read_bytes()
        said = CliRunner().invoke(main, ["sharpness", "a.safetensors", option, given, "--json", out])
        assert f"--json {out}: it is read by this command; name another file" in said.stderr, (option, given)
        assert Path(out).read_bytes() == before
    check_destinations({"--json": here / "pets" / "cat" / "1.json"}, [], named=["pets", "resnet18"])


def test_images_are_decoded_as_what_they_are(here: Path) -> None:
    """Not 16 bits as white, EPS by Ghostscript, or a pipe for ever."""
    for name in ("cat", "dog"):
        (here / "grey" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(here / "grey" / name / f"{i}.png")
    assert load("grey").channels == 1
    image = Path("grey/cat/0.png")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(image)
    assert f"{image}: more than 8 bits a pixel (I;16)" in refusal(lambda: load("grey"))
    image.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    assert f"{image}: not an image that can be read (cannot identify" in refusal(lambda: load("grey"))
    image.unlink()
    os.mkfifo(image)
    assert f"{image}: a pipe" in refusal(lambda: load("grey"))


def labels_of(data: Dataset, split: Any) -> list[int]:
    (batch,) = data.batches(split, 1000)
    return sorted(round(100 * float(x)) for x in batch.x.flatten(1)[:, 0])


def test_a_sampler_that_chooses_is_refused_and_its_remedy_works(here: Path) -> None:
    x = (torch.arange(100) / 100).reshape(-1, 1, 1, 1).expand(100, 1, 4, 4)
    pairs = TensorDataset(x, torch.arange(100) % 2)
    chosen = [
        DataLoader(pairs, sampler=SubsetRandomSampler(range(80))),
        DataLoader(pairs, sampler=RandomSampler(pairs, num_samples=7)),
        DataLoader(pairs, sampler=RandomSampler(pairs, replacement=True)),
        DataLoader(pairs, batch_sampler=BatchSampler(SubsetRandomSampler(range(80)), 8, drop_last=False)),
        DataLoader(pairs, batch_sampler=[[1, 2], [3, 4]]),
    ]
    for loader in chosen:
        assert "Subset" in refusal(lambda loader=loader: adapt("mine", {"train": loader, "test": pairs}))  # type: ignore[misc]
    loaders = {
        "train": DataLoader(Subset(pairs, range(80)), batch_size=9, shuffle=True),
        "val": Subset(pairs, range(80, 90)),
        "test": DataLoader(Subset(pairs, range(90, 100)), sampler=SequentialSampler(range(10))),
    }
    data = adapt("mine", loaders)
    found = [labels_of(data, split) for split in ("train", "val", "test")]
    assert found == [[*range(80)], [*range(80, 90)], [*range(90, 100)]]


def test_a_loaders_own_collation_is_its_batches(here: Path) -> None:
    def half(items: Sequence[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        return {"image": torch.stack([x for x, _ in items]) / 2, "label": torch.tensor([1 - int(y) for _, y in items])}

    pairs = TensorDataset(torch.rand(30, 1, 4, 4), torch.arange(30) % 2)
    data = adapt("mine", {split: DataLoader(pairs, 7, collate_fn=half) for split in ("train", "val", "test")})
    (batch,) = data.batches("test", 30)
    assert torch.equal(batch.x, pairs.tensors[0] / 2)
    assert torch.equal(batch.y, 1 - pairs.tensors[1])


def test_an_iterable_data_set_may_have_a_length(here: Path) -> None:
    class Twenty(IterableDataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 20

        def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
            return iter([(torch.full((1, 4, 4), i / 20), i % 2) for i in range(20)])

    for made in (Twenty(), DataLoader(Twenty(), batch_size=3)):
        data = adapt("mine", {split: made for split in ("train", "val", "test")})
        assert labels_of(data, "test") == [*range(0, 100, 5)]


def test_settings_that_are_opened_run_and_trust_nothing(run: Path) -> None:
    Path("mine.py").write_text("from pathlib import Path\nPath('ran').touch()\n" + EXAMPLE)
    assert s2ap_diag.load("run/config.toml").network.name == "mine.py:Net"
    assert s2ap_diag.load("mine.toml").data.options == {"images": 120}
    assert "runs no code" in refusal(lambda: s2ap_diag.load(CHECKPOINT))
    assert not Path("ran").exists()


def test_the_data_sets_options_are_the_runs_by_whatever_path(run: Path) -> None:
    (copy,) = (run / "code").iterdir()
    for name in ("mine.py:stripes", "./mine.py:stripes", f"{run.parent}/mine.py:stripes", f"{copy}:stripes"):
        source = Source(network="mine.py:Net", dataset=name)
        data = source.data(source.open(Path(CHECKPOINT)))
        assert data.count("train") + data.count("val") == 120, name


def test_a_type_that_cannot_be_checked_takes_the_value() -> None:
    def net(classes: int, mean: "list[float] | torch.Tensor", std: torch.Tensor) -> tuple[Any, Any]:
        return mean, std

    net.__annotations__ = {"classes": int, "mean": list[float] | torch.Tensor, "std": list["Nowhere"]}  # type: ignore[name-defined]  # noqa: F821
    made = parts.call("network x", net, offered={"classes": 2}, options={"mean": [1.0], "std": [2.0]})
    assert made == ([1.0], [2.0])


def test_a_network_without_a_linear_layer_has_no_head() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    assert last_linear(model) is None
    tensors = {"fc.weight": torch.zeros(2, 4, 1, 1)}
    assert with_linear_head(tensors, model) == tensors


READERS = (
    ["check", "run", "--quiet", "--json", "found.json"],
    ["report", "run", "--quiet"],
    ["hamming", "run", "--quiet"],
)


def test_a_run_is_read_without_its_code(run: Path) -> None:
    """The density is that of the masks, the budget is checked, and no command asks for an option that it lacks."""
    (run.parent / "mine.py").unlink()
    for command in READERS:
        ended = CliRunner().invoke(main, command)
        assert ended.exit_code in (0, 1), ended.output
        assert "--network" not in ended.output
    found = {one["condition"]: one for one in json.loads(Path("found.json").read_text())}
    assert found["budget"]["passed"]
    assert found["budget"]["value"] == 44 / 88  # of 8x9 + 2x8 weights
    (evidence,) = map(gather, collect(run)[0])
    assert evidence.budget is not None
    assert (evidence.budget.cost.density, evidence.budget.cost.flops) == (0.5, None)
    state, header = load_tensors(run / "ckpt" / "finetune-best.safetensors")
    state["conv.mask"] = torch.zeros_like(state["conv.mask"])
    save_tensors(run / "ckpt" / "finetune-best.safetensors", state, header)
    assert "conv.weight" in gather(collect(run)[0][0]).budget.violation  # type: ignore[union-attr]


def test_masks_without_their_network_are_those_of_the_network() -> None:
    """Of convolutions, linear layers and an attention with what lies in it, at all dimensions."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv3d(1, 2, 2), nn.Conv2d(4, 4, 3, groups=2))
            self.attention = nn.MultiheadAttention(4, 2)
            self.fc = nn.Linear(4, 3)

    model = Net()
    attach_masks(model, lambda name, layer: ScoreMask(torch.randn(layer.weight.shape), 0.3))
    expected, found = masks(model), select_masks(plain_state_dict(model), 0.3)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_notes_what_its_own_method_makes_of_its_course(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without a search, whose layers keep different fractions: finished, and read without its code."""
    Path("once.py").write_text("from s2ap_core.methods.magnitude_global import MagnitudeGlobal as Once\n")
    Path("once.toml").write_text(re.sub(r"method = .*", 'method = { name = "once.py:Once", keep = 0.5 }', CONFIG))
    changes = [word for change in SHORT if "prune" not in change for word in ("--set", change)]
    changes += ["--set", "minimizer.name=none"]
    config = Path("once.toml").read_text().replace("prune = { epochs = 2, lr = 0.01, batch_size = 20 }\n", "")
    Path("once.toml").write_text(re.sub(r"minimizer = .*\n", "", config))
    ended = CliRunner().invoke(main, ["run", "once.toml", "--out", "run", "--quiet", *changes[:-2]])
    assert ended.exit_code == 0, ended.output
    noted = json.loads(Path("run/environment.json").read_text())["method"]
    assert noted == {"pretrained": True, "searches": False, "uniform": False, "finetuned": True, "counts_flops": False}
    monkeypatch.setattr(code, "named", set())
    config = RunDirectory.open(Path("run")).config
    assert course.search_epochs(config) == 0
    assert config == parse_file(Path("run/config.toml"))
    assert "noted" not in config.method.model_dump()
    for command in READERS[:2]:
        ended = CliRunner().invoke(main, command)
        assert ended.exit_code in (0, 1), ended.output
    found = {one["condition"]: one for one in json.loads(Path("found.json").read_text())}
    assert found["budget"]["passed"]


def test_a_run_goes_on_with_the_code_that_it_began_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its later stages, whatever the file has become; going on from there is refused, the copy named."""
    edited = "raise RuntimeError('another version')\n"
    edits = f"        open('mine.py', 'w').write({edited!r})\n"
    began = EXAMPLE.replace("        attach_masks(", edits + "        attach_masks(")
    Path("mine.py").write_text(began)
    changes = [word for change in SHORT for word in ("--set", change)]
    command = ["run", "mine.toml", "--out", "run", "--quiet", *changes]
    ended = CliRunner().invoke(main, command)
    assert ended.exit_code == 0, ended.output
    assert Path("mine.py").read_text() == edited
    assert Path("run/ckpt/finetune-best.safetensors").exists()  # a stage after the edit
    (copy,) = Path("run/code").iterdir()
    assert copy.read_text() == began

    Path("mine.py").write_text(EXAMPLE)
    monkeypatch.setattr(code, "named", set())
    refused = CliRunner().invoke(main, [*command, "--resume"])
    assert refused.exit_code == 2
    said = f"began with parts.mine.py:stripes ({copy.relative_to('run')} is a copy) = {copy.stem[5:]}, now "
    assert said in refused.stderr
