"""One import for a search that is not ours: meters, a follower, results to look at, anything opened by its path."""

import math
import sys
import types
import warnings
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import s2ap_diag
from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.packed import PackedMask
from s2ap_core.masks.masking import masks, scores
from s2ap_core.training.evaluation import Evaluation
from s2ap_core.training.stages import Stages
from s2ap_diag import Follower, Lanczos, SharpnessMeter, StabilityMeter
from s2ap_diag.curvature.curvature import curvature
from s2ap_diag.stability.meter import masks_in
from tests.spectra import cross_entropy, network

matplotlib.use("agg")


QUICK = Lanczos(iterations=12)


def search(epochs, follower=None):
    """A search of someone else: plain SGD on the scores."""
    model, batches = network()
    sgd = torch.optim.SGD(list(scores(model).values()), lr=5.0, momentum=0.9)
    if follower:
        follower.on_start(model)
    for _ in range(epochs):
        for batch in batches:
            sgd.zero_grad()
            cross_entropy(model, batch).backward()
            sgd.step()
            if follower:
                follower.on_batch(model, batch)
        if follower:
            follower.on_epoch(model)
    return model


def bits(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


# --- meters ---


def test_the_stability_meter_gives_the_trajectory():
    model, _ = network()
    meter, seen = StabilityMeter(), []
    for seed in range(4):
        with torch.no_grad():
            for values in scores(model).values():
                values.copy_(torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)))
        meter.update(model)
        seen.append({name: mask.clone() for name, mask in masks(model).items()})
    reading = meter.compute()
    assert list(reading.distances) == s2ap_diag.trajectory(seen)
    first, last = (torch.cat([mask.flatten() for mask in seen[i].values()]) for i in (0, -1))
    assert reading.row()["h"] == float((first != last).double().mean())
    by_update = reading.to_frame("update")
    assert list(by_update.index) == [1, 2, 3]
    assert by_update["flipped"].tolist() == [distance.flipped for distance in reading.distances]

    previous = StabilityMeter("previous")
    for mask in seen:
        previous.update(mask)
    assert list(previous.compute().distances) == s2ap_diag.trajectory(seen, against="previous")
    meter.reset()
    with pytest.raises(InputError, match="fewer than two masks"):
        meter.compute()


def test_masks_are_found_in_any_network():
    torch.manual_seed(0)
    pruned = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    assert {name: int(mask.sum()) for name, mask in masks_in(pruned).items()} == {"0.weight": 12}
    zeros = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        zeros[0].weight[:, ::2] = 0
    assert {name: int(mask.sum()) for name, mask in masks_in(zeros).items()} == {"0.weight": 12}
    alone = nn.Linear(6, 4)
    prune.l1_unstructured(alone, "weight", amount=6)
    assert {name: int(mask.sum()) for name, mask in masks_in(alone).items()} == {"weight": 18}
    with pytest.raises(InputError, match="no Conv2d or Linear layer"):
        StabilityMeter().update(nn.ReLU())


def test_the_sharpness_meter_measures_the_batches_held_on_the_model_as_it_is():
    model, batches = network()
    meter = SharpnessMeter(cross_entropy, images=17, rho=(0.1,), by_layer="layer", solver=QUICK)
    for batch in [*batches, *batches]:  # 16 and 8 are held, the others are more than asked for
        x = batch[0].clone()
        meter.update(model, (x, batch[1]))
        x.zero_()  # a loop may use its memory again
    with torch.no_grad():
        next(iter(scores(model).values())).mul_(-1).add_(0.5)
    before = bits(model)
    reading = meter.compute()
    assert all(map(torch.equal, before, bits(model)))
    assert reading.curvature == curvature(model, cross_entropy, batches, by_layer="layer", solver=QUICK)
    (expected,) = s2ap_diag.loss_differences(model, cross_entropy, batches, (0.1,))
    assert reading.row()["loss_difference_0.1"] == expected.mean
    meter.reset()
    with pytest.raises(InputError, match="no batch is held"):
        meter.compute()


def test_the_meter_prepares_only_what_it_holds_and_warns_of_residuals():
    model, batches = network()
    prepared = []

    def prepare(model, batch):
        prepared.append(len(batch[1]))
        return {"x": batch[0], "y": batch[1]}

    loss = lambda model, batch: cross_entropy(model, (batch["x"], batch["y"]))  # noqa: E731
    meter = SharpnessMeter(loss, images=16, prepare=prepare, solver=s2ap_diag.PowerIteration(1))
    for batch in batches:
        meter.update(model, batch)
    assert prepared == [16]
    with pytest.warns(UserWarning, match="has not converged"):
        meter.compute()


# --- a search that is followed ---


def test_a_search_that_is_followed_is_the_same_search():
    follower = Follower(StabilityMeter(), SharpnessMeter(cross_entropy, solver=QUICK))
    followed = search(3, follower)
    drawn = torch.random.get_rng_state()
    assert all(map(torch.equal, bits(search(3)), bits(followed)))
    assert torch.equal(drawn, torch.random.get_rng_state())
    frame = follower.to_frame()
    assert frame["epoch"].tolist() == [1, 2, 3]
    start, _ = network()
    assert frame["h"].iloc[-1] == s2ap_diag.hamming(masks(start), masks(followed)).h > 0
    _, batches = network()
    assert frame["lambda_max"].iloc[-1] == curvature(followed, cross_entropy, batches, solver=QUICK).lambda_max


def test_a_follower_goes_on_from_its_state(tmp_path):
    whole, first = (Follower(StabilityMeter(), SharpnessMeter(cross_entropy, solver=QUICK)) for _ in range(2))
    search(3, whole)
    model, batches = network()
    halves = [first, Follower(StabilityMeter(), SharpnessMeter(cross_entropy, solver=QUICK))]
    sgd = torch.optim.SGD(list(scores(model).values()), lr=5.0, momentum=0.9)
    for half, epochs in zip(halves, (1, 2), strict=True):
        if half is not first:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            half.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))  # as trainers load theirs
        half.on_start(model)
        for _ in range(epochs):
            for batch in batches:
                sgd.zero_grad()
                cross_entropy(model, batch).backward()
                sgd.step()
                half.on_batch(model, batch)
            half.on_epoch(model)
    pd.testing.assert_frame_equal(halves[1].to_frame(), whole.to_frame())


def test_a_follower_without_meters_or_start_says_so():
    with pytest.raises(InputError, match="nothing to read"):
        Follower()
    with pytest.raises(InputError, match="call on_start"):
        Follower(StabilityMeter()).on_epoch(network()[0])


def test_lightning_without_lightning_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(InputError, match="pip install lightning"):
        s2ap_diag.lightning_callback(Follower(StabilityMeter()))


def test_lightnings_hooks_do_what_a_plain_loop_does(monkeypatch):
    """A trainer that calls the hooks in the order of Lightning's documentation; logged is what a plain loop gives."""
    module = types.ModuleType("lightning.pytorch")
    module.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    plain, hooked = (Follower(StabilityMeter(), SharpnessMeter(cross_entropy, solver=QUICK)) for _ in range(2))
    callback, logged = s2ap_diag.lightning_callback(hooked), []
    assert isinstance(callback, module.Callback)
    model, batches = network()
    model.log_dict = logged.append
    callback.on_train_start(None, model)
    plain.on_start(model)
    for index, batch in enumerate(batches):
        callback.on_train_batch_end(None, model, None, batch, index)
        plain.on_batch(model, batch)
    callback.on_train_epoch_end(None, model)
    row = plain.on_epoch(model)
    assert logged == [{name: v for name, v in row.items() if isinstance(v, int | float) and name != "epoch"}]
    assert callback.state_dict()["rows"] == plain.state_dict()["rows"]


# --- results ---


class Cells(HTMLParser):
    """The texts of a page's table cells."""

    def __init__(self):
        super().__init__()
        self.texts, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th", "b")

    def handle_data(self, data):
        if self.inside and data.strip():
            self.texts.append(data.strip())


def readings():
    model, batches = network()
    hessian = s2ap_diag.ScoreHessian(model, cross_entropy, batches)
    first = masks(model)
    second = {name: ~mask for name, mask in first.items()}
    correct = np.arange(30) % 3 == 0
    about = {"attack": "pgd-50", "norm": "Linf", "eps": 0.1, "dataset": "d", "n": 30}
    columns = {"index": np.arange(30), "label": np.arange(30) % 10, "clean": np.ones(30, bool), "noise": correct}

    def arm(index):
        robust = [np.roll(correct, seed * index) | (np.arange(30) < index * 4) for seed in range(3)]
        return {s: Evaluation(**columns, robust=r, zero_gradient=~correct, about=about) for s, r in enumerate(robust)}

    return {
        "LambdaMax": s2ap_diag.lambda_max(hessian),
        "Trace": s2ap_diag.trace(hessian),
        "SpectralDensity": s2ap_diag.spectral_density(hessian, probes=2),
        "LossDifference": s2ap_diag.loss_difference(model, cross_entropy, batches, rho=0.1),
        "Curvature": curvature(model, cross_entropy, batches, by_layer="layer", solver=QUICK),
        "Hamming": s2ap_diag.hamming(first, second),
        "ScoreMargins": s2ap_diag.score_margins(model, 0.1),
        "Comparison": s2ap_diag.compare(arm(0), arm(1)),
    }


def test_every_result_is_a_frame_a_picture_and_a_table_in_a_notebook():
    for name, reading in readings().items():
        frame = reading.to_frame()
        assert len(frame) == 1, name
        numbers = [value for value in frame.iloc[0] if isinstance(value, float) and math.isfinite(value)]
        assert numbers, name
        for column in frame:  # the reading's own numbers, unrounded
            if hasattr(reading, column):
                assert frame[column].iloc[0] == getattr(reading, column) or pd.isna(frame[column].iloc[0]), (
                    name,
                    column,
                )
        cells = Cells()
        cells.feed(reading._repr_html_())
        assert cells.texts[0] == name
        assert set(frame.columns) <= set(cells.texts), name
        axes = reading.plot()
        assert axes.has_data(), name
        assert axes.get_xlabel() or axes.get_ylabel(), name
        matplotlib.pyplot.close(axes.figure)


def test_details_are_those_of_the_reading():
    reading = readings()
    by_layer = reading["Curvature"].to_frame("layer")
    assert by_layer.index.name == "layer"
    assert by_layer["layers_live"].to_dict() == reading["Curvature"].layers_live
    by_batch = reading["LossDifference"].to_frame("batch")
    assert by_batch["per_batch"].tolist() == list(reading["LossDifference"].per_batch)
    assert reading["ScoreMargins"].to_frame("layer")["flippable"].sum() == sum(
        margin.flippable for margin in reading["ScoreMargins"].layers.values()
    )
    assert pd.concat(r.to_frame() for r in (reading["Hamming"],) * 2).shape[0] == 2
    with pytest.raises(InputError, match="has 'layer'"):
        reading["Curvature"].to_frame("batch")
    with pytest.raises(InputError, match="none were measured"):
        reading["Trace"].to_frame("layer")


def test_bars_are_as_long_as_the_layers_h():
    reading = s2ap_diag.hamming({"a": [1, 0, 1, 0], "b": [1, 1]}, {"a": [0, 0, 1, 0], "b": [0, 0]})
    axes = reading.plot()
    drawn = dict(
        zip([t.get_text() for t in axes.get_yticklabels()], [p.get_width() for p in axes.patches], strict=True)
    )
    assert drawn == {"a": 0.25, "b": 1.0}


def test_a_result_is_drawn_on_axes_that_are_given():
    _, axes = matplotlib.pyplot.subplots()
    reading = s2ap_diag.hamming({"a": [1, 0]}, {"a": [0, 1]})
    assert reading.plot(axes) is axes
    assert len(axes.patches) == 1


# --- anything by its path ---


@pytest.mark.usefixtures("tiny_network")
def test_load_opens_everything_in_a_run(tmp_path, new_run, data):
    short = {"prune": {"epochs": 1}, "finetune": {"epochs": 1}, "pretrain": {"epochs": 1}}
    for name in ("runs/a", "runs/b"):
        Stages(new_run(tmp_path / name, **short), data).all()
    run = tmp_path / "runs" / "a"
    opened = s2ap_diag.load(run)
    assert opened.results.keys() >= {"evaluate-finetune"}
    assert [one.path for one in s2ap_diag.load(tmp_path / "runs")] == [tmp_path / "runs" / name for name in "ab"]
    assert isinstance(s2ap_diag.load(run / "config.toml"), Config)
    assert isinstance(s2ap_diag.load(run / "evals" / "finetune.npz"), Evaluation)
    assert s2ap_diag.load(run / "results.json") == opened.results
    assert s2ap_diag.load(run / "metrics.csv").equals(opened.metrics)
    epochs = [file.header["epoch"] for file in s2ap_diag.load(run / "masks")]
    assert epochs == [0, 1]
    names = [checkpoint.path.name.split(".")[0] for checkpoint in s2ap_diag.load(run / "ckpt")]
    assert set(names) == {"pretrain", "prune-epoch-000", "prune-epoch-001", "prune-best", "finetune-best"}
    one = s2ap_diag.load(str(run / "masks" / "epoch-000.safetensors"))
    assert all(isinstance(mask, PackedMask) for mask in one.masks.layers.values())
    (run / "records.json").write_text('[{"h": 1}]')
    assert s2ap_diag.load(run / "records.json") == [{"h": 1}]


@pytest.mark.parametrize("name", ["no.csv", "no.json", "no.toml", "no.npz", "no.safetensors", "no", "empty"])
def test_what_load_cannot_open_is_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name), warnings.catch_warnings():
        s2ap_diag.load(tmp_path / name)
