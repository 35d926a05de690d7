"""A method, a network, a data set, an objective and a metric, each added from outside in one line."""

import numpy as np
import pandas as pd
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from s2ap_core.data import DATASETS, InMemory
from s2ap_core.masks.masking import attach_masks
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.methods import METHODS, Method
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.attacks import pgd
from s2ap_core.training.loop import Callback
from s2ap_core.training.norms import uniform_start
from s2ap_core.training.objectives import OBJECTIVES, Objective
from s2ap_diag.commands import main
from s2ap_diag.curvature.tracking import TRACKERS
from tests.reading import masks_in


class Magnitude(Method):
    """Scores are the weights themselves."""

    def attach(self, model, generator):
        attach_masks(model, lambda name, layer: ScoreMask(layer.weight.detach().clone(), self.settings.keep))


class Perceptron(nn.Sequential):
    def __init__(self, classes, input_channels, norm_affine, width=6, input_size=2):
        first = nn.Linear(input_channels * input_size**2, width)
        super().__init__(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, classes))


def stripes(root):
    """Two classes: bright on the left, bright on the right."""
    labels = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 40, (60, 1, 2, 2), dtype=np.uint8)
    images[np.arange(60), 0, :, labels] += 200
    parts = {"train": slice(0, 40), "val": slice(40, 50), "test": slice(50, 60)}
    return InMemory("stripes", 2, {split: (images[part], labels[part]) for split, part in parts.items()})


def hinge(threat, beta):
    def attack(model, x, y, generator):
        start = uniform_start(x, threat.eps, generator)
        loss = lambda logits: F.multi_margin_loss(logits, y, reduction="sum")  # noqa: E731
        return pgd(model, x, loss, start=start, eps=threat.eps, step=threat.step, steps=threat.steps)

    return Objective("hinge", attack, lambda model, x, x_adv, y: F.multi_margin_loss(model(x_adv), y))


class ScoreNorm(Callback):
    def __init__(self, settings):
        pass

    def on_epoch(self, loop):
        norms = [p.norm().item() for n, p in loop.model.named_parameters() if n.endswith("scores")]
        return [("", "score_norm", float(sum(norms)))] if loop.stage == "prune" else []


def test_each_registry_takes_an_entry_from_outside(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "magnitude", Magnitude)
    monkeypatch.setitem(NETWORKS, "perceptron", Perceptron)
    monkeypatch.setitem(DATASETS, "stripes", stripes)
    monkeypatch.setitem(OBJECTIVES, "hinge", hinge)
    monkeypatch.setitem(TRACKERS, "score-norm", ScoreNorm)
    config = tmp_path / "mine.toml"
    config.write_text(
        """
        data.name = "stripes"
        network.name = "perceptron"
        objective = { name = "hinge", eps = 0.1, step = 0.05, steps = 2 }
        method = { name = "magnitude", keep = 0.5 }
        minimizer = { name = "s2ap", gamma = 0.01, warmup = 1 }
        tracking = { metrics = ["score-norm"], every = 1 }
        pretrain.epochs = 10
        prune = { epochs = 2, lr = 0.01 }
        finetune.epochs = 1
        evaluation.attack = "pgd-50"
        """
    )
    result = CliRunner().invoke(main, ["run", str(config), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output

    # The data are separable at this eps, so the search must have run on them, by this loss.
    assert "100" in result.output
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    norms = metrics[metrics.metric == "score_norm"].set_index("epoch").value
    assert list(norms.index) == [0, 1, 2]
    # The first mask is that of the largest weights, which is what the method says.
    dense = load_checkpoint(tmp_path / "run" / "ckpt" / "pretrain.safetensors").model
    first = masks_in(tmp_path / "run" / "masks" / "epoch-000.safetensors")
    for layer, kept in (("1", 12), ("3", 6)):
        magnitude = dense.get_submodule(layer).weight.abs()
        assert np.array_equal(first[f"{layer}.weight"], magnitude >= magnitude.flatten().sort().values[-kept])
