"""Masks without a search, against naive renderings of their formulas, and as whole runs."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.layers import maskable_layers, score_masks
from s2ap_core.masks.masking import attach_masks, masks
from s2ap_core.masks.parametrization import LayerMask
from s2ap_core.methods import METHODS, MethodSettings, build_method
from s2ap_core.methods.base import Attacked
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import load_checkpoint, save_checkpoint
from s2ap_core.seeds import derive_seed, generator
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.stages import Stages
from s2ap_diag.verification import verify
from tests.reading import masks_in
from tests.tiny import Tiny

pytestmark = pytest.mark.usefixtures("tiny_network")

BASELINES = ("magnitude", "magnitude-global", "magnitude-erk", "random", "snip", "taylor", "mad")


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """The weights of a plain network, in double precision, by name."""
    return {f"{n}.weight": layer.weight.detach().double().numpy() for n, layer in maskable_layers(model).items()}


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the ``count`` largest, by a stable sort of all."""
    marked = np.zeros(values.size, dtype=bool)
    marked[np.argsort(values.ravel(), kind="stable")[values.size - count :]] = True
    return marked.reshape(values.shape)


def globally(values: dict[str, np.ndarray], keep: float) -> dict[str, np.ndarray]:
    """Mark the largest of all layers together."""
    every = np.concatenate([v.ravel() for v in values.values()])
    marked, start, found = largest(every, every.size - int((1 - keep) * every.size)), 0, {}
    for name, v in values.items():
        found[name] = marked[start : start + v.size].reshape(v.shape)
        start += v.size
    return found


def started(name: str, model: nn.Module, keep: float, batches=(), loss=None, seed: int = 0) -> dict[str, np.ndarray]:
    method = build_method(MethodSettings(name=name, keep=keep))
    method.start(model, generator("cpu", seed), iter(batches), loss)
    return {name: mask.numpy() for name, mask in masks(model).items()}


def equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


# --- magnitudes ---


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 1.0])
def test_layer_wise_magnitude_is_the_mask_that_hydra_starts_from(keep, narrow):
    model = narrow()
    expected = {n: largest(abs(w), w.size - int((1 - keep) * w.size)) for n, w in weights(model).items()}
    hydra = narrow()
    build_method(MethodSettings(name="hydra", keep=keep)).attach(hydra, generator("cpu", 0))
    found = started("magnitude", model, keep)
    assert equal(found, expected)
    assert equal(found, {name: mask.numpy() for name, mask in masks(hydra).items()})


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 1.0])
def test_global_magnitude_is_one_sort_over_all_weights(keep, narrow):
    model = narrow("resnet18")
    expected = globally({n: abs(w) for n, w in weights(model).items()}, keep)
    assert equal(started("magnitude-global", model, keep), expected)


def test_equal_weights_at_the_global_threshold_are_cut_to_the_budget():
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 6, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_((torch.arange(layer.weight.numel()) % 3 - 1.0).reshape(layer.weight.shape))
    expected = globally({n: abs(w) for n, w in weights(model).items()}, 0.3)
    found = started("magnitude-global", model, 0.3)
    assert sum(int(bits.sum()) for bits in found.values()) == 44 - int(0.7 * 44)
    assert equal(found, expected)


def erk_densities(shapes: list[tuple[int, ...]], keep: float) -> list[float]:
    """Evci et al.: layers that one factor would raise above 1 are dense, one after the other, the others share."""
    dense: set[int] = set()
    while True:
        left = keep * sum(map(math.prod, shapes)) - sum(math.prod(shapes[i]) for i in dense)
        factor = left / sum(sum(shape) for i, shape in enumerate(shapes) if i not in dense)
        densities = [1.0 if i in dense else factor * sum(s) / math.prod(s) for i, s in enumerate(shapes)]
        if max(densities) <= 1 + 1e-12:
            return densities
        dense.add(max(range(len(shapes)), key=lambda i: densities[i]))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 1.0])
def test_erk_rates_are_the_formula_and_its_layers_keep_their_largest(name, keep, narrow):
    model = narrow(name)
    before = weights(model)
    densities = erk_densities([w.shape for w in before.values()], keep)
    found = started("magnitude-erk", model, keep)
    total = sum(w.size for w in before.values())
    assert sum(int(bits.sum()) for bits in found.values()) == total - int((1 - keep) * total)
    for (layer, bits), density in zip(found.items(), densities, strict=True):
        assert abs(bits.sum() - max(density * bits.size, 1)) <= 1.01, layer
        assert np.array_equal(bits, largest(abs(before[layer]), int(bits.sum())))
    assert keep in (0.02, 1.0) or 1.0 in densities  # the cap is met
    assert len(set(densities)) > 2 or keep == 1.0


def test_erk_of_two_layers_by_hand():
    # Rates 9/20 and 90/1800; at keep 0.2 of 1820, 364 weights, 9 f + 90 f = 364 gives 33 of 20: all 20 stay.
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(30, 60, bias=False))
    found = started("magnitude-erk", model, 0.2)
    assert [int(bits.sum()) for bits in found.values()] == [20, 344]


def test_random_masks_keep_every_layers_budget_and_change_with_the_seed_alone(narrow):
    first, again, other = (started("random", narrow("resnet18"), 0.2, seed=seed) for seed in (3, 3, 4))
    assert equal(first, again)
    before = weights(narrow("resnet18"))
    for name, bits in first.items():
        assert bits.sum() == bits.size - int(0.8 * bits.size)
        if bits.size > 1000:
            assert abs((bits & other[name]).sum() / bits.sum() - 0.2) < 0.1
            kept, dropped = (abs(before[name][chosen]).mean() for chosen in (bits, ~bits))
            assert abs(kept / dropped - 1) < 0.2


# --- gradients ---


@pytest.fixture(params=["trades", "pgd-at", "mart"])
def attacked(request, settings, data):
    """A tiny network in eval mode, three batches under attack, the last one smaller, and the loss."""
    torch.manual_seed(5)
    model = Tiny().eval()
    objective = build_objective(settings(objective={"name": request.param}).objective)
    batches = [
        Attacked(b.x, objective.attack(model, b.x, b.y, generator("cpu", index)), b.y)
        for index, b in enumerate(data.batches("train", 16))
    ]
    assert [len(b.y) for b in batches] == [16, 16, 8]
    return model, batches, objective.loss


def backward(model: nn.Module, loss: torch.Tensor) -> dict[str, np.ndarray]:
    model.zero_grad()
    loss.backward()
    layers = maskable_layers(model)
    return {f"{name}.weight": layer.weight.grad.double().numpy().copy() for name, layer in layers.items()}


@pytest.mark.parametrize("keep", [0.05, 0.3])
def test_snip_is_the_gradient_of_all_images_times_the_weight(keep, attacked):
    model, batches, loss = attacked
    whole = Attacked(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    slope, before = backward(model, loss(model, *whole)), weights(model)
    expected = {name: abs(slope[name] * w) for name, w in before.items()}
    assert agree(started("snip", model, keep, batches, loss), expected, keep)


@pytest.mark.parametrize("keep", [0.05, 0.3])
def test_taylor_is_the_mean_square_over_batches(keep, attacked):
    model, batches, loss = attacked
    slopes, before = [backward(model, loss(model, *batch)) for batch in batches], weights(model)
    expected = {name: np.mean([(slope[name] * w) ** 2 for slope in slopes], axis=0) for name, w in before.items()}
    assert agree(started("taylor", model, keep, batches, loss), expected, keep)


@pytest.mark.parametrize("keep", [0.05, 0.3])
def test_mad_is_half_the_squared_weight_times_the_fisher_diagonal(keep, attacked):
    model, batches, loss = attacked
    before = weights(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class With(nn.Module):
        def __init__(self, parameters):
            super().__init__()
            self.given = parameters

        def forward(self, images):
            return functional_call(model, self.given, (images,))

    def of_one(parameters, x, x_adv, y):
        return loss(With(parameters), x[None], x_adv[None], y[None])

    each = [vmap(grad(of_one), in_dims=(None, 0, 0, 0))(parameters, *batch) for batch in batches]
    fisher = {n: torch.cat([slopes[n] for slopes in each]).double().square().mean(0).numpy() for n in before}
    expected = {name: 0.5 * w**2 * fisher[name] for name, w in before.items()}
    assert agree(started("mad", model, keep, batches, loss), expected, keep)


def agree(found: dict[str, np.ndarray], saliency: dict[str, np.ndarray], keep: float) -> bool:
    """Whether a mask keeps exactly the budget, and the largest saliencies but for ties to rounding."""
    total = sum(s.size for s in saliency.values())
    budget = total - int((1 - keep) * total)
    kept = np.concatenate([saliency[name][bits] for name, bits in found.items()])
    dropped = np.concatenate([saliency[name][~bits] for name, bits in found.items()])
    close = sum(int((found[name] != bits).sum()) for name, bits in globally(saliency, keep).items()) <= 2
    return len(kept) == budget and close and kept.min() >= dropped.max() * (1 - 1e-4)


# --- masks with a keep rate of their own, on disk ---


def layered(keeps: list[float], narrow) -> nn.Module:
    model, rates = narrow(), iter(keeps)
    return attach_masks(model, lambda name, layer: LayerMask(layer.weight.detach().clone(), next(rates)))


DESCRIBED = {"name": "tiny", "classes": 10, "width": 4, "input_size": 8, "input_channels": 1, "norm_affine": True}


def test_a_layers_own_rate_survives_its_checkpoint_even_if_it_is_nothing(narrow, tmp_path):
    model = layered([0.5, 0.0, 7 / 320], narrow)
    save_checkpoint(tmp_path / "mask", model, {"network": DESCRIBED, "keep": 0.3})
    again = load_checkpoint(tmp_path / "mask").model
    assert [mask.n_keep for mask in score_masks(again).values()] == [18, 0, 7]
    assert [int(bits.sum()) for bits in masks(again).values()] == [18, 0, 7]
    assert all(torch.equal(bits, masks(model)[name]) for name, bits in masks(again).items())


@pytest.mark.parametrize("kept", range(50))
def test_a_count_over_the_size_is_that_count_again(kept):
    assert LayerMask(torch.rand(7, 7), kept / 49).n_keep == kept  # 1 / 49 * 49 is less than 1


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan])
def test_a_rate_that_no_layer_has_is_refused(wrong, narrow, tmp_path):
    save_checkpoint(tmp_path / "mask", layered([0.5, 0.1, 0.2], narrow), {"network": DESCRIBED, "keep": 0.3})
    tensors, header = load_tensors(tmp_path / "mask")
    save_tensors(tmp_path / "mask", tensors | {"conv2.keep": torch.tensor(wrong).double()}, header)
    with pytest.raises(InputError, match=r"mask: conv2.keep = .* must lie in \[0, 1\]"):
        load_checkpoint(tmp_path / "mask")


# --- runs ---


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_hands_its_mask_through_all_stages(name, tmp_path, new_run, data):
    run = new_run(tmp_path / "run", method={"name": name, "keep": 0.2}, prune={"batch_size": 16})
    Stages(run, data).all()
    results = run.results()
    assert results["prune"] == {"epochs": 0, "selected_epoch": 0}
    assert list(results)[-3:] == ["evaluate-pretrain", "evaluate-prune", "evaluate-finetune"]
    assert [path.name for path in sorted((run.path / "masks").iterdir())] == ["epoch-000.safetensors"]
    first = masks_in(run.masks(0))
    total = sum(bits.size for bits in first.values())
    assert sum(int(bits.sum()) for bits in first.values()) == (
        sum(bits.size - int(0.8 * bits.size) for bits in first.values())
        if METHODS[name].uniform
        else total - int(0.8 * total)
    )
    for checkpoint in ("prune-epoch-000", "prune-best", "finetune-best"):
        found = masks(load_checkpoint(run.checkpoint(checkpoint)).model)
        assert all(np.array_equal(found[layer].numpy(), bits) for layer, bits in first.items()), checkpoint
    assert not course.epochs(run.config, "prune")


def test_gradients_are_of_training_images_drawn_by_seed_and_stage(tmp_path, new_run, data):
    sections = {"method": {"name": "snip", "keep": 0.2, "batches": 2}, "prune": {"batch_size": 12}}
    run = new_run(tmp_path / "run", seed=3, **sections)
    Stages(run, data).all("prune")
    model = load_checkpoint(run.checkpoint("pretrain")).model
    objective = build_objective(run.config.objective)
    chosen = data.batches("train", 12, shuffle=derive_seed(3, "prune", 0), limit=24)
    expected = started("snip", model, 0.2, [
        Attacked(b.x, objective.attack(model, b.x, b.y, generator("cpu", 3, "prune", 0, i)), b.y)
        for i, b in enumerate(chosen)
    ], objective.loss)  # fmt: skip
    assert equal(masks_in(run.masks(0)), expected)


@pytest.mark.parametrize("lost", ["results", "state"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(lost, tmp_path, new_run, data):
    sections = {"method": {"name": "taylor", "keep": 0.2}, "prune": {"batch_size": 16}}
    whole, broken = (new_run(tmp_path / name, **sections) for name in ("whole", "broken"))
    Stages(whole, data).all()
    Stages(broken, data).all("prune")
    # Killed before results.json says that the mask is there; without the state, before anything was saved.
    file = broken.path / "results.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "prune"}))
    if lost == "state":
        broken.state("prune").unlink()
        shutil.rmtree(broken.path / "masks")
    Stages(broken, data).all()
    for path in sorted(whole.path.rglob("*.safetensors")):
        assert (broken.path / path.relative_to(whole.path)).read_bytes() == path.read_bytes(), path.name
    assert (whole.path / "metrics.csv").read_bytes() == (broken.path / "metrics.csv").read_bytes()


@pytest.mark.parametrize("name", ["hydra", "harp", "rlth"])
def test_a_search_of_no_epoch_keeps_its_first_mask(name, tmp_path, new_run, data, caplog):
    sections = {"method": {"name": name, "keep": 0.2}, "evaluation": {"attack": "none"}}
    searched, unsearched = (
        new_run(tmp_path / str(epochs), prune={"epochs": epochs, "batch_size": 16}, **sections) for epochs in (2, 0)
    )
    Stages(searched, data).all("prune")
    caplog.clear()
    Stages(unsearched, data).all()
    assert equal(masks_in(unsearched.masks(0)), masks_in(searched.masks(0)))
    assert unsearched.results()["prune"] == {"epochs": 0, "selected_epoch": 0}
    handed_on = masks(load_checkpoint(unsearched.checkpoint("prune-best")).model)
    flipped = sum(int((bits.numpy() != masks_in(searched.masks(0))[n]).sum()) for n, bits in handed_on.items())
    assert flipped <= (3 if name == "harp" else 0)  # whose budget is the network's, not each layer's
    findings = verify(load_checkpoint(unsearched.checkpoint("prune-best")))
    assert not [str(finding) for finding in findings if finding.kind == "violation"]
    assert "penalty" not in caplog.text
