"""`s2ap-diag evaluate --dataset cifar10c`: clean accuracy by corruption, and its mean."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from s2ap_core.data.cifar10c import CORRUPTIONS
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import save_checkpoint
from s2ap_diag.commands import main

EACH = 6


def invoke(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def linear(**options):
    """Logits that are linear in the centred pixels: predictions that differ from image to image."""
    torch.manual_seed(0)
    layer = nn.Linear(3 * 32 * 32, options["classes"])
    with torch.no_grad():
        layer.bias -= layer.weight.sum(1) / 2
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "linear", linear)
        yield linear(classes=10).eval()


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    header = {"network": {"name": "linear", "classes": 10}, "keep": 1.0, "epoch": 3, "dataset": "cifar10"}
    file = tmp_path_factory.mktemp("run") / "dense.safetensors"
    save_checkpoint(file, network, header)
    return file


@pytest.fixture(scope="module")
def root(network, tmp_path_factory):
    """The fifteen files; labels are what the network says of the foggy images at severity 3."""
    folder = tmp_path_factory.mktemp("data") / "CIFAR-10-C"
    folder.mkdir()
    for seed, corruption in enumerate(CORRUPTIONS):
        rng = np.random.default_rng(seed)
        np.save(folder / f"{corruption}.npy", rng.integers(0, 256, (5 * EACH, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(predicted(network, folder, "fog", 3), 5))
    return folder.parent


def predicted(network, folder, corruption, severity):
    images = np.load(folder / f"{corruption}.npy")[(severity - 1) * EACH : severity * EACH]
    with torch.no_grad():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()


def expected(network, folder, corruption, severity):
    """Accuracy, computed from the files."""
    labels = np.load(folder / "labels.npy")[:EACH]
    return (predicted(network, folder, corruption, severity) == labels).mean()


def test_every_corruption_and_their_mean(network, checkpoint, root, tmp_path):
    result = invoke(checkpoint, "--dataset", "cifar10c", "--root", root, "--json", tmp_path / "all.json")
    assert result.exit_code == 0, result.output
    *records, mean = json.loads((tmp_path / "all.json").read_text())
    wanted = {name: expected(network, root / "CIFAR-10-C", name, 3) for name in CORRUPTIONS}
    assert {r["corruption"]: r["clean_accuracy"] for r in records} == pytest.approx(wanted)
    assert wanted["fog"] == 1
    assert len(set(wanted.values())) > 1
    assert all(r["severity"] == 3 and r["attack"] == "none" and r["n"] == EACH for r in records)
    assert mean["corruption"] == "mean"
    assert mean["clean_accuracy"] == pytest.approx(np.mean(list(wanted.values())))
    assert "robust_accuracy" not in mean
    assert all(name in result.stdout for name in ("fog", "jpeg_compression", "mean"))


def test_one_corruption_at_a_severity(network, checkpoint, root):
    asked = ("--dataset", "cifar10c", "--root", root, "--corruption", "snow", "--severity", 5, "--json", "-")
    result = invoke(checkpoint, *asked)
    (record,) = json.loads(result.stdout)
    assert record["clean_accuracy"] == pytest.approx(expected(network, root / "CIFAR-10-C", "snow", 5))


def test_an_attack_can_be_asked_for(checkpoint, root):
    asked = ("--dataset", "cifar10c", "--root", root, "--corruption", "fog", "--attack", "pgd-50", "--json", "-")
    (record,) = json.loads(invoke(checkpoint, *asked).stdout)
    assert record["robust_accuracy"] < record["clean_accuracy"] == 1
    assert record["eps"] == "8/255"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--corruption", "fog"), "--dataset cifar10c"),
        (("--dataset", "cifar10c", "--corruption", "rain"), "'rain'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(checkpoint, root, arguments, words):
    result = invoke(checkpoint, "--root", root, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
