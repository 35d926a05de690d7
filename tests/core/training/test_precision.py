"""bfloat16: what is computed in it, and what stays float32. And on a GPU: that no iteration waits for the host."""

import copy

import pytest
import torch
from torch import nn

from s2ap_core.config import MethodSettings, ObjectiveSettings, PruneSettings
from s2ap_core.files.tensors import load_tensors
from s2ap_core.masks.layers import score_masks
from s2ap_core.methods import build_method
from s2ap_core.modes import gpu_arithmetic
from s2ap_core.training import replay
from s2ap_core.training.ball import Flips, Relative, Rise, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters
from s2ap_core.training.perturbation import Perturbation
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.hessian import ScoreHessian


@pytest.mark.parametrize("name", ["trades", "pgd-at", "mart", "fast-at", "clean"])
def test_products_are_bfloat16_and_loss_and_gradients_float32(name, narrow, batch):
    x, y = batch
    model = narrow().train()
    build_method(MethodSettings(name="hydra", keep=0.5)).attach(model, torch.Generator())
    objective = build_objective(ObjectiveSettings(name=name))
    lower = objective.autocast("bfloat16")
    seen = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    x_adv = lower.attack(model, x, y, torch.Generator().manual_seed(0))
    assert x_adv.dtype == torch.float32
    assert (x_adv - x).abs().max() <= 1.25 * 8 / 255 + 1e-6  # no step is lost or doubled by rounding
    loss = lower.loss(model, x, x_adv, y)
    loss.backward()
    assert seen == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert all(mask.scores.grad.dtype == torch.float32 for mask in score_masks(model).values())
    # Eight bits of mantissa: a relative error of some 2^-8 for each of a few layers.
    reference = objective.loss(copy.deepcopy(model).train(), x, x_adv, y)
    assert loss.item() == pytest.approx(reference.item(), rel=0.05)
    assert loss.item() != reference.item()
    assert objective.autocast("float32") is objective


@pytest.mark.usefixtures("tiny_network")
def test_a_run_in_bfloat16_keeps_float32_scores_and_finds_nearly_the_same_mask(tmp_path, new_run, data):
    found = {}
    for precision in ("float32", "bfloat16"):
        run = new_run(tmp_path / precision, compute={"precision": precision}, minimizer={"name": "s2ap", "warmup": 1})
        Stages(run, data).all(until="prune")
        found[precision], _ = load_tensors(run.checkpoint("prune-best"))
    assert all(t.dtype in (torch.float32, torch.int64) for t in found["bfloat16"].values())
    scores = [torch.cat([t.flatten() for n, t in f.items() if n.endswith("scores")]) for f in found.values()]
    assert not torch.equal(*scores)
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.95


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize(
    ("method", "network", "radius"),
    [
        ("hydra", "resnet18", Relative(0.01)),
        ("harp", "resnet18", Relative(0.01)),
        ("hydra", "resnet18", Flips(0.01)),
        ("hydra", "resnet18", Rise(0.05)),
        ("hydra-erk", "resnet18", Flips(0.01)),
        ("harp-units", "vit", Flips(0.01)),
        ("harp-units", "vit", Rise(0.05)),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_iteration_never_waits_for_the_gpu(method, network, radius, precision, narrow, batch):
    x, y = (part.cuda() for part in batch)
    model = narrow(network).cuda().to(memory_format=torch.channels_last).train()
    settings = build_method(MethodSettings(name=method, keep=0.3))
    settings.attach(model, torch.Generator())
    optimizer = torch.optim.SGD(searched_parameters(model, PruneSettings()), lr=0.1, momentum=0.9)
    objective = build_objective(ObjectiveSettings()).autocast(precision)
    perturbation = Perturbation(model, score_layers(model), radius=copy.copy(radius))

    def once() -> None:
        iterate(
            model, x, y, objective=objective, optimizer=optimizer, perturbation=perturbation,
            generator=torch.Generator("cuda").manual_seed(0), penalty=lambda: settings.penalty(model, 0),
        )  # fmt: skip

    once()  # what libraries set up at their first call may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.usefixtures("tiny_network")
def test_a_deterministic_run_finds_the_same_bits_on_a_gpu(tmp_path, new_run, data):
    found = []
    for name in ("once", "again"):
        run = new_run(
            tmp_path / name, network={"name": "resnet18", "width": 4}, compute={"deterministic": True},
            minimizer={"name": "s2ap", "warmup": 1},
        )  # fmt: skip
        Stages(run, data, device="cuda").all(until="prune")
        found.append(load_tensors(run.checkpoint("prune-best"))[0])
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_curvature_is_float32_whatever_torch_is_set_to(narrow, batch):
    x, y = (part.cuda() for part in batch)
    model = narrow("resnet18").cuda().eval()
    build_method(MethodSettings(name="hydra", keep=0.3)).attach(model, torch.Generator())
    products = []
    for tf32 in (True, False):
        with gpu_arithmetic(tf32=tf32):
            hessian = ScoreHessian(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [(x, y)])
            v = torch.randn(hessian.n, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
            products.append(hessian.matvec(v))
    double = copy.deepcopy(model).double()
    hessian = ScoreHessian(double, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [(x.double(), y)])
    exact = hessian.matvec(v.double())
    for product in products:
        assert (product - exact).norm() / exact.norm() < 1e-4  # TF32 differs by some 1e-3


def test_arithmetic_is_left_as_it_was_found():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    with gpu_arithmetic(tf32=not before[0], deterministic=not before[1]):
        with gpu_arithmetic(tf32=before[0]):
            assert torch.backends.cudnn.deterministic is not before[1]
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is not before[0]
    after = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    assert after == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("reads_back", [False, True], ids=["recorded", "reads back"])
def test_steps_that_are_replayed_are_those_that_are_launched(reads_back):
    weight = torch.rand(64, 64, device="cuda")

    def step(state):
        return torch.tanh(state @ weight) * (float(state.sum().item() < 1e9) if reads_back else 1.0)

    state = torch.rand(8, 64, device="cuda")
    launched = state
    for _ in range(6):
        launched = step(launched)
    replay.release()
    replayed = [replay.repeat(step, state, 6) for _ in range(2)]
    assert all(torch.equal(launched, result) for result in replayed)
    recorded = replay._latest[state.device]  # the results would be the same without a recording
    assert (recorded is None) == reads_back
    replay.release()
    torch.rand(1, device="cuda")  # which a recording that failed would not let through
