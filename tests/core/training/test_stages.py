"""Whole runs of seconds: interrupted and resumed, selected, trained and frozen as they should be."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s2ap_core.config import TrackingSettings
from s2ap_core.data import InMemory
from s2ap_core.distributed import group
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.masking import masks
from s2ap_core.methods.harp import Harp
from s2ap_core.models import NETWORKS
from s2ap_core.models.resnet_cifar import ResNet18
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.training import epochs
from s2ap_core.training.loop import Callback, Loop, Selection, robust_validation, shared_batches
from s2ap_core.training.stages import Stages
from s2ap_core.training.state import save_state
from s2ap_diag.curvature.tracking import CurvatureTracker
from s2ap_diag.reading.read import read

pytestmark = pytest.mark.usefixtures("tiny_network")

# HARP with S2AP and carried z, AWP in finetuning: everything that a resume must bring back.
EVERYTHING = {
    "method": {"name": "harp", "keep": 0.3, "penalty": 5.0, "rate_init": [0.9, 0.5, 0.3]},
    "minimizer": {"name": "s2ap", "gamma": 0.2, "warmup": 1, "carry": True},
    "finetune": {"awp": True, "gamma": 0.01},
    "evaluation": {"stages": ["prune", "finetune"]},
}


class Stop(Exception):
    """What a test interrupts a run with."""


class Interrupt(Callback):
    """Raises after one iteration, in mid-epoch."""

    def __init__(self, stage: str, epoch: int, iteration: int = 1) -> None:
        self.at = (stage, epoch, iteration)

    def on_iteration(self, loop, step):
        if (loop.stage, loop.epoch, loop.iteration) == self.at:
            raise Stop


class Poison(Callback):
    """Makes BatchNorm's scale NaN after an iteration, as a step too far would."""

    def __init__(self, stage: str, epoch: int, iteration: int) -> None:
        self.at = (stage, epoch, iteration)

    def on_iteration(self, loop, step):
        if (loop.stage, loop.epoch, loop.iteration) == self.at:
            loop.model.bn2.weight.data.fill_(math.nan)


def tracker() -> CurvatureTracker:
    return CurvatureTracker(TrackingSettings(every=1, iterations=3, images=8))


def contents(run: Path) -> dict[str, object]:
    """Everything in a run's folder that must not depend on interruptions; times may."""
    found: dict[str, object] = {
        name: (run / name).read_bytes() for name in ("config.toml", "metrics.csv", "results.json")
    }
    for file in sorted((*(run / "ckpt").iterdir(), *(run / "masks").iterdir())):
        tensors, header = load_tensors(file)
        found[f"{file.parent.name}/{file.name}"] = ({n: t.numpy().tobytes() for n, t in tensors.items()}, header)
    for file in sorted((run / "evals").glob("*.npz")):
        with np.load(file) as arrays:
            found[file.name] = {name: arrays[name].tolist() for name in arrays}
    return found


def metric(run: Path, stage: str, name: str) -> dict[int, float]:
    """A metric per epoch."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        int(r["epoch"]): float(r["value"])
        for r in rows
        if (r["stage"], r["metric"], r["iteration"]) == (stage, name, "")
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, new_run, data, tiny_network) -> Path:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    Stages(new_run(path, **EVERYTHING), data, callbacks=[tracker()]).all()
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, new_run, data, tiny_network) -> Path:
    """The dense checkpoint of another run, for runs that need no pretraining of their own."""
    path = tmp_path_factory.mktemp("runs") / "pretrained"
    stages = Stages(new_run(path, pretrain={"epochs": 4}), data)
    stages.pretrain()
    return stages.run.result("pretrain")


@pytest.fixture
def prune(tmp_path, new_run, data, pretrained) -> Callable[..., Path]:
    """``prune(name, callbacks, **sections)``: search from the dense checkpoint, and give the run's folder."""

    def run(name: str, *callbacks: Callback, **sections: dict) -> Path:
        path = tmp_path / name
        sections["pretrain"] = {"checkpoint": str(pretrained)}
        stages = Stages(new_run(path, **sections), data, callbacks=callbacks)
        stages.pretrain()
        stages.prune()
        return path

    return run


# --- resuming ---


@pytest.mark.parametrize("stages", [("pretrain", "prune"), ("prune", "finetune")])
def test_an_interrupted_run_ends_as_if_it_had_not_been(stages, uninterrupted, tmp_path, new_run, data):
    run = new_run(tmp_path / "run", **EVERYTHING)
    # Epoch 3 of the search has perturbations behind it: z, momentum, rates and eigenvectors are restored.
    for stage in stages:
        with pytest.raises(Stop):
            Stages(run, data, callbacks=[tracker(), Interrupt(stage, {"prune": 3}.get(stage, 2))]).all()
        run = RunDirectory.open(tmp_path / "run")
    Stages(run, data, callbacks=[tracker()]).all()
    ours, theirs = contents(tmp_path / "run"), contents(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    "minimizer",
    [
        {"gamma": "rise", "rise": 0.05},
        {"gamma": "flips", "flips": 0.1, "source": "attack"},
        {"source": "momentum", "gamma": 0.2},
        {"direction": "shuffled", "gamma": 0.2},
        {"direction": "random", "gamma": "flips"},
    ],
    ids=lambda minimizer: "-".join(map(str, minimizer.values())),
)
def test_however_z_is_made_an_interrupted_search_ends_as_if_it_had_not_been(minimizer, prune, tmp_path, new_run, data):
    sections = {"minimizer": {"name": "s2ap", "warmup": 1, **minimizer}, "prune": {"epochs": 4}}
    whole = prune("whole", **sections)
    with pytest.raises(Stop):
        prune("cut", Interrupt("prune", 3), **sections)
    Stages(RunDirectory.open(tmp_path / "cut"), data).prune()
    states = [load_tensors(path / "ckpt/state-prune.safetensors") for path in (whole, tmp_path / "cut")]
    assert states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(tensor, states[1][0][name]) for name, tensor in states[0][0].items())
    assert ("radius.log_gamma" in states[0][0]) == (minimizer["gamma"] == "rise")
    if minimizer["gamma"] == "rise":
        assert states[0][0]["radius.log_gamma"].exp() != pytest.approx(0.01)


def test_the_uninterrupted_run_has_what_an_interruption_must_bring_back(uninterrupted):
    tensors, header = load_tensors(uninterrupted / "ckpt" / "state-prune.safetensors")
    for kind in (
        "z.0",
        "optimizer.0.momentum_buffer",
        "model.conv1.rate",
        "callback.0.all_running",
        "callback.0.all_batch",
    ):
        assert tensors[kind].any(), kind
    assert header["method"]["reached"] is not None
    files = {p.relative_to(uninterrupted).as_posix() for p in uninterrupted.rglob("*") if p.is_file()}
    assert {
        "config.toml", "environment.json", "metrics.csv", "timing.csv", "results.json", "ckpt/pretrain.safetensors",
        "ckpt/prune-best.safetensors", "ckpt/finetune-best.safetensors", "ckpt/state-prune.safetensors",
        "evals/prune.npz", "evals/finetune.npz",
        *(f"masks/epoch-00{i}.safetensors" for i in range(4)),
        *(f"ckpt/prune-epoch-00{i}.safetensors" for i in range(4)),
    } <= files  # fmt: skip
    lines = (uninterrupted / "metrics.csv").read_text().splitlines()
    assert lines[0] == "stage,epoch,iteration,metric,value"
    assert not any("second" in line for line in lines)


def test_what_is_done_is_not_repeated(uninterrupted, data):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*.safetensors")}

    class Nothing(Callback):
        def on_iteration(self, loop, step):
            raise AssertionError

    Stages(RunDirectory.open(uninterrupted), data, callbacks=[Nothing()]).all()
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*.safetensors")} == before


@pytest.mark.parametrize("at", [("pretrain", 1), ("pretrain", 2), ("prune", 0)])  # without a state, with one
def test_a_crash_after_the_metrics_leaves_no_rows_twice(tmp_path, new_run, data, monkeypatch, at):
    run = new_run(tmp_path / "run")

    def crash(path: Path, loop: Loop, *rest: Any) -> None:
        if (loop.stage, loop.epoch) == at:
            raise Stop
        save_state(path, loop, *rest)

    def search() -> None:
        stages = Stages(run, data)
        stages.pretrain()
        stages.prune()

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "save_state", crash)
        with pytest.raises(Stop):
            search()
    search()
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    # A heading; five metrics for each epoch, three before the search.
    assert len(rows) == len(set(rows)) == 1 + 2 * 5 + 3 + 3 * 5


def test_each_stage_reads_only_the_files_of_the_one_before(tmp_path, new_run, data):
    # A new process for each stage gives what one for all gives.
    one, each = new_run(tmp_path / "one", **EVERYTHING), new_run(tmp_path / "each", **EVERYTHING)
    Stages(one, data).all()
    for stage in ("pretrain", "prune", "finetune"):
        torch.manual_seed(hash(stage) % 1000)  # the global generator has no part in it
        getattr(Stages(RunDirectory.open(each.path), data), stage)()
    for name in ("pretrain", "prune-best", "finetune-best"):
        ours, theirs = load_tensors(each.checkpoint(name))[0], load_tensors(one.checkpoint(name))[0]
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs), name


def test_other_seeds_make_other_runs(prune):
    first, second = prune("0", seed=0), prune("1", seed=1)
    ours, theirs = (load_tensors(p / "ckpt" / "prune-epoch-003.safetensors")[0] for p in (first, second))
    assert not torch.equal(ours["conv1.scores"], theirs["conv1.scores"])


# --- batches of one image ---

ONE_PIXEL = {"network": {"name": "for-32", "width": 4}, "minimizer": {"name": "s2ap", "warmup": 1, "subset": 0.01}}


@pytest.fixture
def one_pixel(monkeypatch):
    """ONE_PIXEL's network: a ResNet-18 for 32x32 images, whose last maps are a pixel on those of 8x8."""
    monkeypatch.setitem(NETWORKS, "for-32", lambda input_size, **sizes: ResNet18(**sizes))


class Batches(Callback):
    """Notes each batch that is trained on."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, int]] = []
        self.expected: dict[str, int] = {}

    def on_stage(self, loop):
        self.expected[loop.stage] = loop.iterations_per_epoch

    def on_iteration(self, loop, step):
        self.seen.append((loop.stage, loop.epoch, loop.iteration, loop.share.count))


def test_a_last_batch_of_one_image_joins_the_one_before_it(one_pixel, tmp_path, new_run, data):
    first = next(data.batches("train", 33))
    splits = {"train": first, "val": next(data.batches("val", 17)), "test": next(data.batches("test", 17))}
    images = {name: ((255 * b.x).round().byte().numpy(), b.y.numpy()) for name, b in splits.items()}
    odd, batches = InMemory("odd", 10, images), Batches()
    Stages(new_run(tmp_path / "whole", **ONE_PIXEL), odd, callbacks=[batches]).all()
    for stage, count in (("pretrain", 2), ("prune", 3), ("finetune", 2)):
        expected = [(stage, epoch + 1, i, n) for epoch in range(count) for i, n in enumerate((16, 17))]
        assert [seen for seen in batches.seen if seen[0] == stage] == expected
        assert batches.expected[stage] == 2
    run = new_run(tmp_path / "broken", **ONE_PIXEL)
    with pytest.raises(Stop):
        Stages(run, odd, callbacks=[Interrupt("prune", 3)]).all()
    Stages(run, odd).all()
    ours, theirs = contents(tmp_path / "broken"), contents(tmp_path / "whole")
    assert all(ours[name] == theirs[name] for name in theirs)


@pytest.mark.parametrize(("count", "size"), [(33, 16), (17, 4), (9, 3), (10, 3), (3, 2), (1, 4)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_processes_shares_make_up_each_batch(data, monkeypatch, count, size, processes):
    x, y, _ = next(data.batches("train", count))
    few = InMemory("few", 10, {"train": ((255 * x).round().byte().numpy(), y.numpy())})
    whole = [batch.index for batch, _ in shared_batches(few, "train", size, shuffle=1)]
    assert torch.cat(whole).sort().values.tolist() == list(range(count))
    hands = []
    for rank in range(processes):
        monkeypatch.setattr(group, "_group", group._Group(rank, processes))
        hands.append(list(shared_batches(few, "train", size, shuffle=1)))
    for index, positions in enumerate(whole):
        for rank, hand in enumerate(hands):
            batch, share = hand[index]
            assert (share.count, share.rank, share.world) == (len(positions), rank, processes)
            assert batch.index.tolist() == positions[rank::processes].tolist()
            assert share.first(share.count) == len(batch.y)
    assert {len(hand) for hand in hands} == {len(whole)}
    assert min(map(len, whole)) > 1 or count == 1


def test_batches_of_one_image_are_refused_where_batch_norm_cannot_have_them(one_pixel, tmp_path, new_run, data):
    run = new_run(tmp_path / "run", **ONE_PIXEL, pretrain={"batch_size": 1})
    with pytest.raises(InputError, match=r"pretrain\.batch_size: one image will not do"):
        Stages(run, data).all()


# --- losses that are not finite ---


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("pretrain", {}),
        ("prune", {}),
        ("finetune", {"finetune": {"awp": True}}),
        ("prune", {"minimizer": {"name": "s2ap", "warmup": 0}}),
    ],
)
def test_a_loss_of_nan_stops_with_the_iteration_named(tmp_path, new_run, data, stage, sections):
    run = new_run(tmp_path / "run", **sections)
    with pytest.raises(InputError, match=f"{stage}: the loss is nan at epoch 2, iteration 1") as error:
        Stages(run, data, callbacks=[Poison(stage, 2, 0)]).all()
    assert "\n" not in str(error.value)
    assert_last_good_epoch_is_kept(run, stage)


@pytest.mark.parametrize("stage", ["pretrain", "prune"])
def test_a_last_step_too_far_is_not_committed(tmp_path, new_run, data, stage):
    run = new_run(tmp_path / "run")
    with pytest.raises(InputError, match=rf"{stage}: .*nan.* epoch 2"):
        Stages(run, data, callbacks=[Poison(stage, 2, 2)]).all()
    assert_last_good_epoch_is_kept(run, stage)


def assert_last_good_epoch_is_kept(run: RunDirectory, stage: str) -> None:
    tensors, header = load_tensors(run.state(stage))
    assert header["epoch"] == 1
    assert all(t.isfinite().all() for t in tensors.values())
    assert max(metric(run.path, stage, "val_loss")) == 1
    best = "pretrain" if stage == "pretrain" else f"{stage}-best"
    assert all(t.isfinite().all() for t in load_tensors(run.checkpoint(best))[0].values())


# --- selection and schedule ---


@pytest.mark.parametrize(
    ("rule", "expected"), [("robust-loss", [0, 2]), ("robust-accuracy", [0, 1, 3]), ("last", [0, 1, 2, 3, 4])]
)
def test_selection_rules(rule, expected):
    epochs = [(2.0, 0.1), (2.5, 0.2), (1.5, 0.2), (1.5, 0.3), (math.nan, 0.3)]
    selection = Selection(rule)
    assert [i for i, offer in enumerate(epochs) if selection.offer(i, *offer)] == expected
    assert selection.epoch == expected[-1]


@pytest.mark.parametrize("rule", ["robust-loss", "robust-accuracy", "last"])
def test_the_selected_epoch_is_handed_on(prune, data, rule):
    run = prune("run", prune={"select": rule, "epochs": 3, "lr": 0.3})
    loss, accuracy = metric(run, "prune", "val_loss"), metric(run, "prune", "val_robust_accuracy")
    assert list(loss) == [0, 1, 2, 3]
    best = {"robust-loss": min(loss, key=loss.get), "robust-accuracy": max(accuracy, key=accuracy.get), "last": 3}[rule]
    results = json.loads((run / "results.json").read_text())
    assert results["prune"] == {"epochs": 3, "selected_epoch": best}
    handed_on, header = load_tensors(run / "ckpt" / "prune-best.safetensors")
    epoch, _ = load_tensors(run / "ckpt" / f"prune-epoch-00{best}.safetensors")
    assert header["epoch"] == best
    # Before the first epoch the statistics are the dense network's, and what is handed on has its own.
    same = [n for n in epoch if best or not n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(handed_on[n], epoch[n]) for n in same)


def test_validation_is_the_robust_loss_on_the_validation_split(prune, data, settings):
    run = prune("run")
    found = metric(run, "prune", "val_loss")
    model = load_checkpoint(run / "ckpt" / "prune-epoch-002.safetensors").model
    stages = Stages(RunDirectory.open(run), data)
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    again = robust_validation(model, stages.objective, data, 16, seed=0)
    assert again["val_loss"] == found[2]
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    # Whatever the batches, the same images count: only the attack's noise is drawn by batch.
    assert robust_validation(model, stages.objective, data, 20, seed=0)["val_loss"] == pytest.approx(found[2], rel=0.02)
    batch = next(data.batches("val", 20))
    clean = (model.eval()(batch.x).argmax(1) == batch.y).float().mean().item()
    assert again["val_clean_accuracy"] == pytest.approx(clean)
    assert again["val_robust_accuracy"] <= clean


# --- what the search changes ---


def test_the_search_trains_scores_and_batch_norm_and_nothing_else(prune, pretrained):
    dense, _ = load_tensors(pretrained)
    run = prune("run", prune={"select": "last", "weight_decay": 0.1})
    found, _ = load_tensors(run / "ckpt" / "prune-best.safetensors")
    start, _ = load_tensors(run / "ckpt" / "prune-epoch-000.safetensors")
    for name, tensor in dense.items():
        assert torch.equal(found[name], tensor) is not name.startswith("bn"), name
    for name in ("conv1.scores", "conv2.scores", "linear.scores"):
        assert not torch.equal(found[name], start[name])


def test_freeze_norm_keeps_the_affine_parameters(prune, pretrained):
    dense, _ = load_tensors(pretrained)
    run = prune("run", prune={"select": "last", "freeze_norm": True})
    found, _ = load_tensors(run / "ckpt" / "prune-best.safetensors")
    for name in ("bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"):
        assert torch.equal(found[name], dense[name]), name
    assert (run / "masks" / "epoch-000.safetensors").read_bytes() != (
        run / "masks" / "epoch-003.safetensors"
    ).read_bytes()


def test_warm_up_epochs_are_those_of_orig(prune):
    strong = {"name": "s2ap", "gamma": 0.3, "warmup": 2}
    orig, s2ap = prune("orig"), prune("s2ap", minimizer=strong)
    for epoch in range(4):
        name = f"prune-epoch-00{epoch}.safetensors"
        ours, theirs = (load_tensors(run / "ckpt" / name)[0] for run in (s2ap, orig))
        same = all(torch.equal(ours[n], theirs[n]) for n in theirs)
        assert same is (epoch <= 2), epoch


def test_saved_masks_are_those_of_the_checkpoints(prune):
    run = prune("run")
    for epoch in range(4):
        file = read(run / "masks" / f"epoch-00{epoch}.safetensors").as_masks()
        header, saved = file.header, file.masks.unpack()
        model = load_checkpoint(run / "ckpt" / f"prune-epoch-00{epoch}.safetensors").model
        assert (header["epoch"], header["keep"], header["stage"]) == (epoch, 0.3, "prune")
        assert all(np.array_equal(saved[n], m) for n, m in masks(model).items())
        for mask in saved.values():
            assert int(mask.sum()) == mask.size - int(0.7 * mask.size)


def test_finetuning_keeps_the_mask_and_trains_the_weights(uninterrupted):
    before = load_checkpoint(uninterrupted / "ckpt" / "prune-best.safetensors").model
    after, _ = load_tensors(uninterrupted / "ckpt" / "finetune-best.safetensors")
    for name, mask in masks(before).items():
        assert torch.equal(after[name.replace("weight", "mask")], mask)
        assert not after[name][~mask].any()
        assert not torch.equal(after[name][mask], before.state_dict()[original(name)][mask])


def original(name: str) -> str:
    return name.replace("weight", "parametrizations.weight.original")


@pytest.mark.parametrize(
    ("awp", "minimizer", "gamma"),
    [
        ({}, {"name": "s2ap", "gamma": 0.2}, None),
        ({"awp": True}, {"gamma": 0.2}, 0.2),  # the crossed arm, at the search's gamma
        ({"awp": True, "gamma": 0.05}, {"name": "s2ap", "gamma": 0.2}, 0.05),
    ],
)
def test_awp_in_finetuning_is_a_setting_of_its_own(tmp_path, new_run, data, awp, minimizer, gamma):
    class Witness(Callback):
        def __init__(self) -> None:
            self.lengths: list[list[float]] = []

        def on_iteration(self, loop, step):
            if loop.stage == "finetune":
                z = [] if loop.perturbation is None else loop.perturbation.z
                self.lengths.append([z_l.norm().item() for z_l in z])

    run, witness = new_run(tmp_path / "run", finetune={**awp, "lr": 1e-9}, minimizer=minimizer), Witness()
    Stages(run, data, callbacks=[witness]).all()
    weights, _ = load_tensors(run.checkpoint("finetune-best"))
    norms = [weights[f"{name}.weight"].norm().item() for name in ("conv1", "conv2", "linear")]
    expected = [] if gamma is None else pytest.approx([gamma * norm for norm in norms], rel=1e-4)
    assert len(witness.lengths) == 6
    assert all(lengths == expected for lengths in witness.lengths)


def test_the_penalty_counts_epochs_from_zero(prune, monkeypatch):
    counted: dict[str, list[int]] = {"penalty": [], "end_epoch": []}

    def count(name: str) -> None:
        method = getattr(Harp, name)

        def counting(harp: Harp, model: nn.Module, epoch: int) -> Tensor | None:
            counted[name].append(epoch)
            return method(harp, model, epoch)

        monkeypatch.setattr(Harp, name, counting)

    count("penalty")
    count("end_epoch")
    prune("run", method={"name": "harp"})
    assert counted == {"penalty": [0, 0, 0, 1, 1, 1, 2, 2, 2], "end_epoch": [0, 1, 2]}


def test_rlth_neither_pretrains_nor_finetunes(tmp_path, new_run, data):
    run = new_run(tmp_path / "run", method={"name": "rlth"}, network={"norm_affine": False})
    Stages(run, data).all()
    assert run.results()["pretrain"] == {"epochs": 0}
    assert {"evaluate-pretrain", "evaluate-prune"} <= run.results().keys()
    assert "finetune" not in run.results()
    weights, _ = load_tensors(run.checkpoint("pretrain"))
    found, _ = load_tensors(run.checkpoint("prune-best"))
    assert torch.equal(found["conv2.weight"], weights["conv2.weight"])
    assert weights["conv2.weight"].abs().unique().numel() == 1


def test_a_dense_checkpoint_of_another_network_is_refused(tmp_path, new_run, data, pretrained):
    run = new_run(tmp_path / "run", pretrain={"checkpoint": str(pretrained)}, network={"width": 6})
    with pytest.raises(InputError, match="another network than this config's"):
        Stages(run, data).pretrain()


def test_a_dense_checkpoint_of_another_fold_is_refused(tmp_path, new_run, data, pretrained):
    """It was trained on images that this run is tested on."""
    given = load_checkpoint(pretrained)
    save_checkpoint(tmp_path / "other.safetensors", given.model, given.header | {"fold": 2})
    for fold in (1, None):
        options = {} if fold is None else {"options": {"fold": fold}}
        pretrain = {"checkpoint": str(tmp_path / "other.safetensors")}
        run = new_run(tmp_path / f"run-{fold}", pretrain=pretrain, data={"name": "digits", **options})
        with pytest.raises(InputError, match=f"= 2, this run is on {fold}"):
            Stages(run, data).pretrain()


def test_callbacks_see_every_iteration_and_add_their_metrics(tmp_path, new_run, data):
    class Witness(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple] = []

        def on_attacked(self, loop, x, x_adv, y):
            assert 0 < (x_adv - x).abs().max() <= 32 / 255 + 1e-6
            self.seen.append((loop.stage, loop.epoch, loop.iteration))

        def on_epoch(self, loop):
            return [(1, "witness", 0.5)]

    run, witness = new_run(tmp_path / "run", evaluation={"stages": []}), Witness()
    Stages(run, data, callbacks=[witness]).all()
    epochs = {"pretrain": 2, "prune": 3, "finetune": 2}
    assert witness.seen == [(s, e, i) for s, n in epochs.items() for e in range(1, n + 1) for i in range(3)]
    rows = (run.path / "metrics.csv").read_text().splitlines()
    assert "prune,0,1,witness,0.5" in rows
    assert rows.count("finetune,2,1,witness,0.5") == 1
