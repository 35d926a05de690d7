"""The same seed on the same machine gives the same masks; another number of threads nearly the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s2ap_core.data import InMemory, load
from s2ap_core.presets.read import overridden, read_config
from s2ap_core.presets.scale import scale_to_digits
from s2ap_core.runs.beginnings import continue_from
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training.stages import Stages
from tests.reading import masks_in

# Each method, minimizer and family of networks once or more.
PRESETS: dict[str, tuple[str, ...]] = {
    "cifar10-resnet18-hydra-orig-90": ("network.width=4",),
    "cifar10-vgg16_bn-harp-s2ap-90": ("network.width=4",),
    "cifar10-wrn_28_4-rlth-s2ap-90": ("network.width=2",),
    "cifar10-vit-hydra-s2ap-50": ("network.width=12", "pretrain.lr_warmup=0"),
    # A mask of channels moves by whole channels. In a network so narrow one is far more than 0.1 % of the entries,
    # and a perturbation moves one or none: rounding decides which.
    "cifar10-resnet18-hydra-channels-s2ap-4x": ("network.width=4", "minimizer.warmup=1"),
    "cifar10-resnet18-harp-awp-90": ("network.width=4",),
}

SHORT = (
    *("pretrain.epochs=1", "pretrain.batch_size=32", "prune.epochs=2", "prune.batch_size=32", "minimizer.warmup=0"),
    *("objective.steps=2", "evaluation.stages=['prune']", "evaluation.attack=pgd-50", "evaluation.n=8"),
)


def few_images() -> InMemory:
    """The first 96 training images of the digits, three batches, and 32 of the others."""
    data = load("digits")
    splits = {split: data._split(split) for split in ("train", "val", "test")}
    sizes = {"train": 96, "val": 32, "test": 32}
    parts = {split: (x[: sizes[split]].numpy(), y[: sizes[split]].numpy()) for split, (x, y) in splits.items()}
    return InMemory("digits", 10, parts, scale=16)


@pytest.fixture(scope="module")
def few() -> InMemory:
    """The images, read once."""
    return few_images()


def search(preset: str, path: Path, data: InMemory) -> Path:
    """A shortened run of a preset; the folder of its masks."""
    config = scale_to_digits(read_config(preset))
    config = overridden(config, (*SHORT, *PRESETS[preset]), preset)
    Stages(RunDirectory.create(path, config, "cpu"), data).all()
    return path / "masks"


def first_epoch(source: Path, path: Path, data: InMemory) -> None:
    """The first epoch of another run's search, from its dense network."""
    run = continue_from(source, path, RunDirectory.open(source).config, "pretrain", "cpu")
    for file in (*(path / "masks").iterdir(), *(path / "ckpt").glob("*prune*"), path / "results.json"):
        file.unlink()
    run.add_results(pretrain={})
    Stages(run, data).prune(epochs=1)


def main(base: Path) -> None:
    """:func:`first_epoch` of each preset, ``BASE/PRESET/run`` into ``BASE/PRESET/again``."""
    torch.set_num_threads(2)
    data = few_images()
    for preset in PRESETS:
        first_epoch(base / preset / "run", base / preset / "again", data)


@pytest.fixture(scope="module")
def two_threads(base, first) -> Path:
    """Folder of the runs that a process with two threads made; they wait asleep, or tests at their side crawl."""
    for preset in PRESETS:
        first(preset)
    folders = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    known = filter(None, [*folders, os.environ.get("PYTHONPATH")])
    program = "import sys, pathlib, test_determinism; test_determinism.main(pathlib.Path(sys.argv[1]))"
    two = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(known)}
    done = subprocess.run(
        [sys.executable, "-c", program, base], env={**os.environ, **two}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Where the runs lie."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(base, few):
    """``first(preset)``: the masks of a run with one thread, made once."""
    made: dict[str, Path] = {}

    def masks_of(preset: str) -> Path:
        if preset not in made:
            made[preset] = search(preset, base / preset / "run", few)
        return made[preset]

    return masks_of


def shares(one: Path, other: Path) -> list[float]:
    """The share of the entries in which the masks of two runs differ, epoch by epoch."""
    found = []
    for file in sorted(one.glob("*.safetensors")):
        ours, theirs = (masks_in(folder / file.name) for folder in (one, other))
        differing = sum(int(np.sum(ours[name] != theirs[name])) for name in ours)
        found.append(differing / sum(mask.size for mask in ours.values()))
    return found


def test_the_presets_cover_methods_minimizers_and_networks():
    configs = [read_config(preset) for preset in PRESETS]
    assert {config.method.name for config in configs} == {"hydra", "harp", "rlth", "hydra-channels"}
    assert {config.minimizer.name for config in configs} == {"none", "s2ap", "awp"}
    assert {config.network.name for config in configs} == {"resnet18", "vgg16_bn", "wrn_28_4", "vit"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_gives_the_same_masks_again(preset, first, few, tmp_path):
    masks = first(preset)
    torch.manual_seed(99)  # the global generators have no part in it
    np.random.seed(99)  # noqa: NPY002
    again = search(preset, tmp_path / "run", few)
    for file in sorted(masks.iterdir()):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    before, *_, last = (masks_in(masks / f"epoch-00{epoch}.safetensors") for epoch in (0, 1, 2))
    assert any(not np.array_equal(before[name], last[name]) for name in before)  # there was a search


@pytest.mark.parametrize("preset", PRESETS)
def test_two_threads_give_nearly_the_same_masks(preset, two_threads):
    found = shares(two_threads / preset / "again" / "masks", two_threads / preset / "run" / "masks")
    assert len(found) == 2  # before the search, and after its first epoch
    assert max(found) < 0.005  # rounding alone: how threads share a convolution is the processor's affair
