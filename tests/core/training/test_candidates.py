"""What an epoch of the search offers: validated, selected and handed on as one thing, beside the search itself."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from s2ap_core.config import ObjectiveSettings
from s2ap_core.files.tensors import load_tensors
from s2ap_core.methods import build_method
from s2ap_core.models import build
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.seeds import derive_seed, generator
from s2ap_core.training import loop as loop_module
from s2ap_core.training.batch_norm import reestimate_statistics
from s2ap_core.training.loop import Loop
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from tests.reading import masks_in

pytestmark = pytest.mark.usefixtures("tiny_network")

SEARCHES = {
    "hydra": {},
    "harp": {"method": {"keep": 0.1, "penalty": 5.0, "rate_init": [0.9, 0.5, 0.4]}},
    "rlth": {"network": {"norm_affine": False}},
    "hydra-channels": {"network": {"name": "resnet18", "width": 4}, "method": {"flops_reduction": 4}},
    "harp-channels": {"network": {"name": "resnet18", "width": 4}, "method": {"flops_reduction": 4, "penalty": 30.0}},
}
EPS, STEP, STEPS, BETA = 32 / 255, 16 / 255, 2, 6.0


def searched(path: Path, new_run: Callable[..., RunDirectory], data, name: str, **sections: dict) -> RunDirectory:
    merged = {**SEARCHES[name], **sections}
    merged["method"] = {"name": name, **merged.get("method", {})}
    merged["network"] = {"name": "tiny", **merged.get("network", {})}
    run = new_run(path, **{"pretrain": {"epochs": 1}, **merged})
    stages = Stages(run, data)
    stages.pretrain()
    stages.prune()
    return run


@pytest.fixture(scope="module", params=SEARCHES)
def search(request, tmp_path_factory, new_run, data, tiny_network) -> RunDirectory:
    return searched(tmp_path_factory.mktemp("search") / "run", new_run, data, request.param)


def kept(name: str, tensors: dict[str, Tensor], header: dict) -> Tensor:
    """The mask of a layer, as its numbers in the file say."""
    magnitude = tensors[f"{name}.scores"].abs()
    n, k = magnitude.numel(), header["keep"]
    if f"{name}.keep" in tensors:
        k = float(tensors[f"{name}.keep"])
    if f"{name}.rate" in tensors:
        k = 0.1 * k + (1 - 0.1 * k) / (1 + math.exp(-float(tensors[f"{name}.rate"])))
    count = max(1, round(k * n)) if f"{name}.keep" in tensors else n - int((1 - k) * n)
    mask = torch.zeros(n)
    mask[magnitude.flatten().argsort(descending=True)[:count]] = 1
    return mask.view_as(magnitude)


def plain(file: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network without a mask of ours whose weights are the file's, times their masks; and the masks."""
    tensors, header = load_tensors(file)
    layers = [name.removesuffix(".scores") for name in tensors if name.endswith(".scores")]
    found = {name: kept(name, tensors, header) for name in layers}
    model = build(**header["network"])
    state = {name: tensors[name] for name in model.state_dict()}
    state |= {f"{name}.weight": tensors[f"{name}.weight"] * mask for name, mask in found.items()}
    model.load_state_dict(state)
    return model.eval(), found


def trades(model: nn.Module, data, batch_size: int) -> float:
    """TRADES on the validation split, step by step."""
    total = 0.0
    for index, batch in enumerate(data.batches("val", batch_size)):
        x, noise = batch.x, torch.randn(batch.x.shape, generator=generator("cpu", 0, "validate", index))
        clean = F.softmax(model(x), dim=1).detach()
        x_adv = x + 0.001 * noise
        for _ in range(STEPS):
            x_adv = x_adv.detach().requires_grad_()
            F.kl_div(F.log_softmax(model(x_adv), dim=1), clean, reduction="sum").backward()
            step = x_adv + STEP * x_adv.grad.sign()
            x_adv = torch.min(torch.max(step, x - EPS), x + EPS).clamp(0, 1)
        with torch.no_grad():
            log_p, log_p_adv = F.log_softmax(model(x), dim=1), F.log_softmax(model(x_adv), dim=1)
            divergence = (log_p.exp() * (log_p - log_p_adv)).sum(1)
            total += float((F.nll_loss(log_p, batch.y, reduction="none") + BETA * divergence).double().sum())
    return total / data.count("val")


def losses(run: RunDirectory) -> dict[int, float]:
    with (run.path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["stage"], row["metric"]) == ("prune", "val_loss")]
    return {int(row["epoch"]): float(row["value"]) for row in rows}


def selected(run: RunDirectory) -> int:
    return json.loads((run.path / "results.json").read_text())["prune"]["selected_epoch"]


def test_what_is_handed_on_is_what_was_validated(search, data):
    model, _ = plain(search.checkpoint("prune-best"))
    found = losses(search)
    assert selected(search) == min(found, key=found.get)
    assert trades(model, data, search.config.prune.batch_size) == pytest.approx(found[selected(search)], abs=1e-6)


def test_what_is_handed_on_keeps_exactly_the_budget(search, data):
    _, found = plain(search.checkpoint("prune-best"))
    method, keep = search.config.method, search.config.method.keep
    sizes, counts = ([int(f(mask)) for mask in found.values()] for f in (Tensor.numel, Tensor.sum))
    if method.name == "harp":
        assert sum(counts) == sum(sizes) - int((1 - keep) * sum(sizes))
    elif not method.name.endswith("-channels"):
        assert counts == [n - int((1 - keep) * n) for n in sizes]
    else:
        counter = build_method(method)
        counter.image_shape = (data.channels, data.size, data.size)
        model = load_checkpoint(search.checkpoint("pretrain")).model
        counter.attach(model, generator("cpu", 0))
        at = counter._flops_at(load_checkpoint(search.checkpoint("prune-best")).model)
        kept_now = dict(zip(found, counts, strict=True))
        assert at(kept_now) <= counter.target
        # One channel more in any layer (or in those that share their input) is too much, where there is one.
        more = {name: min(count + 1, n) for (name, count), n in zip(kept_now.items(), sizes, strict=True)}
        assert at(more) > counter.target


def test_the_search_goes_on_as_if_nothing_were_cut_or_validated(search, tmp_path, new_run, data, monkeypatch):
    nothing = {"val_loss": 1.0, "val_clean_accuracy": 0.0, "val_robust_accuracy": 0.0}
    monkeypatch.setattr(loop_module, "robust_validation", lambda *args: nothing)
    monkeypatch.setattr(Loop, "candidate", lambda loop: loop.model)
    bare = searched(tmp_path / "bare", new_run, data, search.config.method.name)
    for epoch in range(4):
        ours, theirs = (load_tensors(run.checkpoint(f"prune-epoch-00{epoch}"))[0] for run in (search, bare))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), epoch
        assert search.masks(epoch).read_bytes() == bare.masks(epoch).read_bytes()


def test_statistics_are_estimated_under_the_mask_that_is_handed_on(search, data):
    # What the search gathered under a mask that is at its budget stays; of another mask, torch estimates the same.
    epoch, size = selected(search), search.config.prune.batch_size
    model, mask = plain(search.checkpoint("prune-best"))
    own, own_mask = plain(search.checkpoint(f"prune-epoch-00{epoch}"))
    cut = any(not torch.equal(mask[name], own_mask[name]) for name in mask)
    assert cut is (search.config.method.name in ("harp", "harp-channels"))
    expected = own
    assert cut or epoch > 0  # before the search they are the dense network's
    if cut:
        expected, _ = plain(search.checkpoint("prune-best"))
        order = derive_seed(0, "statistics")
        update_bn([batch.x for batch in data.batches("train", size, shuffle=order)], expected)
    for (name, buffer), (_, wanted) in zip(model.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_an_epoch_is_offered_at_the_budget_whether_the_search_is_there_or_not(tmp_path, new_run, data, penalty, caplog):
    method = {"keep": 0.1, "penalty": penalty, "rate_init": [0.9, 0.5, 0.4]}
    run = searched(tmp_path / "run", new_run, data, "harp", method=method)
    found = losses(run)
    assert selected(run) == min(found, key=found.get)
    bits = masks_in(run.masks(3))
    n = sum(mask.size for mask in bits.values())
    too_many = sum(int(mask.sum()) for mask in bits.values()) > n - int(0.9 * n) + 3
    assert too_many is (penalty == 0)
    assert ("never came down to the budget" in caplog.text) is too_many
    best, epoch = (
        load_checkpoint(run.checkpoint(f"prune-{name}")).model for name in ("best", f"epoch-00{selected(run)}")
    )
    for name in ("conv1", "conv2", "linear"):
        ours, theirs = (getattr(model, name).parametrizations.weight[0] for model in (best, epoch))
        assert torch.equal(ours.scores, theirs.scores)
        assert not torch.equal(ours.rate, theirs.rate)


def test_before_the_search_statistics_are_the_masks_own_in_what_is_offered_alone(tmp_path, new_run, data):
    # So small a step that the mask before the search is the best.
    run = searched(
        tmp_path / "run", new_run, data, "hydra", prune={"lr": 1e-9, "epochs": 1, "select": "robust-accuracy"}
    )
    assert selected(run) == 0
    dense, _ = load_tensors(run.checkpoint("pretrain"))
    before, _ = load_tensors(run.checkpoint("prune-epoch-000"))
    best, _ = load_tensors(run.checkpoint("prune-best"))
    assert torch.equal(before["bn2.running_mean"], dense["bn2.running_mean"])
    assert not torch.equal(best["bn2.running_mean"], dense["bn2.running_mean"])
    # The diagnostics estimate them where they are the dense network's, and nowhere else.
    settings = SharpnessSettings(solver=Lanczos(iterations=1), rho=(), images=16, batch_size=16)
    objective = ObjectiveSettings(name="clean")
    for name, said in (("best", "running"), ("epoch-000", "running (re-estimated under the mask)")):
        checkpoint = load_checkpoint(run.checkpoint(f"prune-{name}"))
        assert measure_sharpness(checkpoint, data, objective, settings).batch_norm == said


def test_a_cut_that_is_of_no_use_does_not_stop_the_search(tmp_path, new_run, data, monkeypatch):
    cut = Loop.candidate

    def overflowing(loop: Loop) -> nn.Module:
        found = cut(loop)
        if loop.method is not None and loop.epoch < 2:
            found.linear.bias.data.fill_(3e38)
            found.linear.bias.data[0] = -3e38
        return found

    monkeypatch.setattr(Loop, "candidate", overflowing)
    run = searched(tmp_path / "run", new_run, data, "hydra")
    found = losses(run)
    assert not math.isfinite(found[0] + found[1])
    assert selected(run) == min((2, 3), key=found.get)


def test_estimating_statistics_draws_nothing_and_leaves_modes_and_momentum(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3))
    model[2].train(False)
    state, images = torch.get_rng_state(), [batch[0][:5], batch[0][5:]]
    reestimate_statistics(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, False, True]
    assert model[1].momentum == 0.3
    maps = [model[0](x) for x in images]
    means, variances = ([f(m.transpose(0, 1).flatten(1), 1) for m in maps] for f in (torch.mean, torch.var))
    torch.testing.assert_close(model[1].running_mean, (means[0] + means[1]) / 2)
    torch.testing.assert_close(model[1].running_var, (variances[0] + variances[1]) / 2)
