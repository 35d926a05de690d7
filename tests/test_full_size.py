"""The full-size networks through `s2ap-diag run`, on folders in the data sets' published formats.

A few images and one epoch of each stage: what is tested is that everything fits together at the real sizes.
"""

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from scipy.io import savemat

from s2ap_core.models import build
from s2ap_core.runs.checkpoints import save_checkpoint
from s2ap_diag.commands import main
from tests.reading import masks_in

REFERENCE = json.loads((Path(__file__).parent / "reference" / "state_dicts.json").read_text())
TRAIN, CLASSES = 20, 4
SHORT = (
    "objective.steps=1",
    "tracking.every=0",  # at full width most of the time would go into Hessians
    "pretrain.epochs=1",
    "prune.epochs=1",
    "finetune.epochs=1",
    "minimizer.warmup=0",
    *(f"{stage}.batch_size=10" for stage in ("pretrain", "prune", "finetune")),
    'evaluation.attack="pgd-50"',
    "evaluation.n=1",
    'evaluation.stages=["finetune"]',
)


@pytest.fixture
def cifar10(tmp_path):
    """Five batches of four images, as `cifar-10-batches-py` has them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {"batch_label": name, "data": images, "labels": [0, 1, 2, 3], "filenames": ["a.png"] * 4}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return tmp_path


@pytest.fixture
def svhn(tmp_path):
    """Images [32, 32, 3, N] and labels 1 to 10."""
    rng = np.random.default_rng(0)
    for name, count in (("train", TRAIN), ("test", 4)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": np.arange(count)[:, None] % 10 + 1})
    return tmp_path


@pytest.fixture
def imagenet(tmp_path):
    """Four classes of JPEG files: four to train on, one to test on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for label in range(CLASSES):
            folder = tmp_path / split / f"n0000000{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (300, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG")
    return tmp_path


@pytest.fixture
def out(tmp_path):
    """Where the run goes; removed afterwards, as full-size checkpoints take a gigabyte."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def run(preset, root, out, *settings):
    """Run a preset on the folder ``root``: the masks after the search by layer, and the results."""
    # ImageNet's presets have one step of fast adversarial training, and are given their dense network.
    unread = ("objective.steps", "pretrain.") if preset.startswith("imagenet") else ()
    short = [setting for setting in SHORT if not setting.startswith(unread)]
    sets = [f"--set={setting}" for setting in (*short, f"data.root={root}", *settings)]
    result = CliRunner().invoke(main, ["run", preset, "--out", str(out), *sets])
    assert result.exit_code == 0, (result.output, result.exception)
    return masks_in(out / "masks" / "epoch-001.safetensors"), json.loads((out / "results.json").read_text())


def check(masks, results, out, entries, keep):
    """The search went over ``entries`` weights, has moved them, and what was finetuned keeps ``keep`` of them."""
    assert sum(mask.size for mask in masks.values()) == entries
    before, after = (tensors(out, f"prune-epoch-00{epoch}", "scores") for epoch in (0, 1))
    assert before.keys() == after.keys() == {name.removesuffix("weight") + "scores" for name in masks}
    assert all((before[name] != after[name]).any() for name in before)
    assert results["prune"]["epochs"] == results["finetune"]["epochs"] == 1
    found = list(tensors(out, "finetune-best", "mask").values())
    assert sum(int(mask.sum()) for mask in found) / entries == pytest.approx(keep, abs=1e-3)
    evaluated = results["evaluate-finetune"]
    assert evaluated["n"] == 1
    assert evaluated["robust_accuracy"] <= evaluated["clean_accuracy"]


def tensors(out, checkpoint, kind):
    """The scores or masks of a checkpoint by name."""
    with safe_open(out / "ckpt" / f"{checkpoint}.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.endswith(f".{kind}")}  # noqa: SIM118


def published(name):
    """Entries of each masked layer of the published network: those that have scores, but for an unused block."""
    shapes = REFERENCE[f"hydra/{name}"].items()
    return {
        key: math.prod(shape)
        for key, shape in shapes
        if key.endswith("popup_scores") and not key.startswith("sub_block1")
    }


@pytest.mark.slow
def test_resnet18_on_cifar10_by_harp_with_s2ap(cifar10, out):
    masks, results = run("cifar10-resnet18-harp-s2ap-90", cifar10, out)
    check(masks, results, out, sum(published("resnet18").values()), keep=0.1)


@pytest.mark.slow
def test_vgg16_on_cifar10_by_hydra_with_awp_in_the_search(cifar10, out):
    masks, results = run("cifar10-vgg16_bn-hydra-orig-awp-95", cifar10, out, 'minimizer.name="awp"')
    check(masks, results, out, sum(published("vgg16_bn").values()), keep=0.05)


@pytest.mark.slow
def test_wrn_28_4_on_svhn_by_hydra_with_s2ap(svhn, out):
    masks, results = run("svhn-wrn_28_4-hydra-s2ap-99", svhn, out)
    check(masks, results, out, sum(published("wrn_28_4").values()), keep=0.01)
    labels = set(np.load(out / "evals" / "finetune.npz")["label"])
    assert labels <= set(range(10))


@pytest.mark.slow
def test_vit_on_cifar10_by_hydra_with_s2ap(cifar10, out):
    """8 layers of width 384, MLP 1536; every linear layer but the head is masked, the patch embedding included."""
    unwarmed = [f"{stage}.lr_warmup=0" for stage in ("pretrain", "prune", "finetune")]  # of one epoch
    masks, results = run("cifar10-vit-hydra-s2ap-20", cifar10, out, *unwarmed)
    check(masks, results, out, 48 * 384 + 8 * (4 * 384 * 384 + 2 * 384 * 1536), keep=0.8)


@pytest.mark.slow
def test_resnet50_on_imagenet_starts_from_the_network_that_is_given(imagenet, out, tmp_path):
    header = {
        "network": {
            "name": "resnet50",
            "classes": CLASSES,
            "width": None,
            "input_size": 224,
            "input_channels": 3,
            "norm_affine": True,
        },
        "keep": 1.0,
        "epoch": 90,
    }
    given = tmp_path / "given.safetensors"
    save_checkpoint(given, build(**header["network"]), header)
    masks, results = run(
        "imagenet-resnet50-harp-s2ap-90", imagenet, out, f"pretrain.checkpoint={given}", "data.options.workers=0"
    )
    *layers, last = published("resnet50").values()
    check(masks, results, out, sum(layers) + last // 1000 * CLASSES, keep=0.1)
    assert results["pretrain"] == {"checkpoint": str(given)}


def test_without_the_given_network_nothing_is_begun(imagenet, out):
    sets = [f"--set=data.root={imagenet}"]
    result = CliRunner().invoke(main, ["run", "imagenet-resnet50-harp-orig-90", "--out", str(out), *sets])
    assert result.exit_code == 2
    assert "pretrain.checkpoint" in result.stderr
    assert not out.exists()


def test_without_images_nothing_is_begun(tmp_path, out):
    sets = [f"--set=data.root={tmp_path / 'none'}"]
    result = CliRunner().invoke(main, ["run", "cifar10-resnet18-harp-orig-90", "--out", str(out), *sets])
    assert result.exit_code == 2
    assert not out.exists()
