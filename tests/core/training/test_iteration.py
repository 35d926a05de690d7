"""One iteration of the search against an independent rendering of the published code and of Algorithm 1.

The rendering sorts all scores in each forward pass, computes clean logits again in each attack step, makes
TRADES's four passes in train mode in the published order, perturbs and steps with loops. It shares nothing
with the package but the networks, whose modules it calls with tensors of its own.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from s2ap_core.config import ObjectiveSettings, PruneSettings
from s2ap_core.masks.layers import score_masks
from s2ap_core.masks.masking import fix_masks, masks
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.training.ball import Relative, score_layers, weight_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import normalize_score_gradient, searched_parameters
from s2ap_core.training.perturbation import Perturbation

EPS, STEP, STEPS, BETA = 16 / 255, 4 / 255, 10, 6.0
KEEP, EPOCH, C = 0.1, 2, 0.3


class GetSubset(torch.autograd.Function):
    """As published: sort, zero the smallest, one for the rest; the gradient passes, and adds up for k."""

    @staticmethod
    def forward(ctx, scores, k):
        ranked = scores.flatten().sort(stable=True).indices
        dropped = int((1 - float(k)) * scores.numel())
        out = torch.ones(scores.numel(), dtype=scores.dtype)
        out[ranked[:dropped]] = 0
        return out.reshape(scores.shape)

    @staticmethod
    def backward(ctx, g):
        return g, g.sum()


class Rendering:
    """A HYDRA or HARP search of a plain network, with its weights, scores and rates in dictionaries."""

    def __init__(self, network: nn.Module, harp: bool) -> None:
        self.network = network
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}
        masked = [f"{name}.weight" for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        self.scores = {}
        for name in masked:
            w = self.weights[name]
            self.scores[name] = (math.sqrt(6 / w[0].numel()) * w / w.abs().max()).requires_grad_()
        k_start = (0.3 - 0.1 * KEEP) / (1 - 0.1 * KEEP)
        r = math.log(k_start / (1 - k_start))
        self.rates = {name: torch.tensor(r, dtype=w.dtype, requires_grad=True) for name in masked} if harp else {}
        self.norms = {
            name: p.requires_grad_()
            for name, p in self.weights.items()
            if name not in self.scores and any(name.startswith(f"{m}.") for m in _norms(network))
        }

    def keep(self, name: str) -> Tensor:
        if not self.rates:
            return torch.tensor(KEEP, dtype=torch.float64)
        k_min = 0.1 * KEEP
        return k_min + (1 - k_min) * torch.sigmoid(self.rates[name].double())

    def mask(self, name: str, z: dict[str, Tensor]) -> Tensor:
        return GetSubset.apply((self.scores[name] + z.get(name, 0)).abs(), self.keep(name))

    def forward(self, x: Tensor, z: dict[str, Tensor]) -> Tensor:
        held = dict(self.weights)
        for name in self.scores:
            held[name] = self.weights[name] * self.mask(name, z)
        return functional_call(self.network, held, (x,))

    def attack(self, x: Tensor, rng: torch.Generator) -> Tensor:
        self.network.eval()
        x_adv = x + 0.001 * torch.randn(x.shape, generator=rng, dtype=x.dtype)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            p, log_q = F.softmax(self.forward(x, {}), dim=1), F.log_softmax(self.forward(x_adv, {}), dim=1)
            loss = (p * (p.log() - log_q)).sum()
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + STEP * torch.sign(gradient)
            x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
            x_adv = torch.clamp(x_adv, 0.0, 1.0)
        self.network.train()
        return x_adv

    def trades(self, x: Tensor, x_adv: Tensor, y: Tensor, z: dict[str, Tensor]) -> Tensor:
        self.forward(x, z)  # for the accuracy that is printed
        natural = F.cross_entropy(self.forward(x, z), y)
        log_q, p = F.log_softmax(self.forward(x_adv, z), dim=1), F.softmax(self.forward(x, z), dim=1)
        return natural + BETA * (1.0 / len(x)) * (p * (p.log() - log_q)).sum()

    def penalty(self) -> Tensor:
        if not self.rates:
            return torch.zeros(())
        kept = sum(self.keep(name) * s.numel() for name, s in self.scores.items())
        excess = kept / (KEEP * sum(s.numel() for s in self.scores.values())) - 1
        return C * (EPOCH + 1) * torch.clamp(excess, min=0)

    def perturbation(self, x: Tensor, x_adv: Tensor, y: Tensor, gamma: float, eta: float) -> dict[str, Tensor]:
        """Lines 6 to 9 from z = 0, on a network whose running statistics are thrown away."""
        kept, self.network = self.network, copy.deepcopy(self.network)
        gradients = torch.autograd.grad(self.trades(x, x_adv, y, {}), list(self.scores.values()))
        self.network = kept
        total = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        z = {}
        for (name, s), g in zip(self.scores.items(), gradients, strict=True):
            z[name] = eta * g / total
            if z[name].norm() > gamma * s.norm():
                z[name] = (z[name] * gamma * s.norm() / z[name].norm()).detach()
        return z


def _norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def searched(network: nn.Module, harp: bool) -> tuple[nn.Module, object, torch.optim.SGD]:
    """Ours: the masked network, the method, the optimizer."""
    method = build_method(
        MethodSettings(name="harp" if harp else "hydra", keep=KEEP, penalty=C, rate_init=[0.3] * layers(network))
    )
    method.attach(network, torch.Generator())
    parameters = searched_parameters(network, PruneSettings())
    return network.train(), method, torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def layers(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())


def our_objective():
    return build_objective(ObjectiveSettings(name="trades", beta=BETA, eps="16/255", step="4/255", steps=STEPS))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal relative to the largest entry."""
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-12))


@pytest.mark.parametrize("harp", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "wrn_28_4"])
def test_an_iteration_is_the_published_one(narrow, batch, name, harp):
    x, y = batch[0].double(), batch[1]
    rendering = Rendering(narrow(name).double().train(), harp)
    model, method, optimizer = searched(narrow(name).double(), harp)
    seed = torch.Generator().manual_seed(5)
    x_adv = rendering.attack(x, torch.Generator().manual_seed(5))
    loss = rendering.trades(x, x_adv, y, {})
    (loss + rendering.penalty()).backward()
    expected = {n: rendering.mask(n, {}).bool() for n in rendering.scores}

    found = {n: m.clone() for n, m in masks(model).items()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step = iterate(
        model, x, y, objective=our_objective(), optimizer=optimizer, generator=seed,
        penalty=lambda: method.penalty(model, EPOCH),
    )  # fmt: skip

    assert torch.allclose(step.x_adv, x_adv, atol=1e-6)
    assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    for ours, (n, theirs) in zip(score_masks(model).values(), rendering.scores.items(), strict=True):
        assert close(ours.scores.grad, theirs.grad), n
        if harp:
            assert ours.rate.grad.item() == pytest.approx(rendering.rates[n].grad.item(), rel=1e-5)
    for n, theirs in rendering.norms.items():
        assert close(model.get_parameter(n).grad, theirs.grad), n
    # The first step of SGD with weight decay, for what is searched; all else stays.
    for n, p in model.named_parameters():
        moved = before[n] - 0.1 * (p.grad + 5e-4 * before[n]) if p.requires_grad else before[n]
        assert torch.allclose(p, moved, rtol=1e-9), n
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n in before if n.endswith(("scores", "rate")) or n in rendering.norms
    }


@pytest.mark.parametrize("harp", [False, True])
@pytest.mark.parametrize("eta", [float("inf"), "lr"])
def test_two_iterations_of_s2ap_are_algorithm_1(narrow, batch, harp, eta):
    # Two, so that the second one starts from restored scores, momentum and new running statistics.
    gamma, lr, flips = 0.2, 0.3, 0
    rendering = Rendering(narrow().double().train(), harp)
    model, method, optimizer = searched(narrow().double(), harp)
    optimizer.param_groups[0]["lr"] = lr
    perturbation = Perturbation(model, score_layers(model), radius=Relative(gamma), eta_z=eta)
    leaves = {**rendering.scores, **{f"{n}.rate": r for n, r in rendering.rates.items()}, **rendering.norms}
    momentum = {n: torch.zeros_like(p) for n, p in leaves.items()}
    for index, x in enumerate((batch[0].double(), 1 - batch[0].double())):
        y = batch[1]
        x_adv = rendering.attack(x, torch.Generator().manual_seed(index))
        z = rendering.perturbation(x, x_adv, y, gamma, 1e9 if eta != "lr" else lr)
        flips += sum(int((rendering.mask(n, z) != rendering.mask(n, {})).sum()) for n in z)
        loss = rendering.trades(x, x_adv, y, z)
        gradients = torch.autograd.grad(loss + rendering.penalty(), list(leaves.values()))
        with torch.no_grad():
            for (n, p), g in zip(leaves.items(), gradients, strict=True):
                momentum[n] = 0.9 * momentum[n] + g + 5e-4 * p
                p -= lr * momentum[n]
        step = iterate(
            model, x, y, objective=our_objective(), optimizer=optimizer, perturbation=perturbation,
            generator=torch.Generator().manual_seed(index), penalty=lambda: method.penalty(model, EPOCH),
        )  # fmt: skip
        assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        for z_l, ours in zip(z.values(), perturbation.z, strict=True):
            assert close(ours, z_l)
        # The published passes show the running statistics two more clean batches: only they differ.
        for (n, theirs), ours in zip(rendering.network.named_buffers(), model.buffers(), strict=True):
            assert ours.shape == theirs.shape, n
            ours.copy_(theirs)
    assert flips  # so that the gradient at s + z is another than at s
    for ours, (n, theirs) in zip(score_masks(model).values(), rendering.scores.items(), strict=True):
        assert close(ours.scores, theirs), n
        assert torch.equal(ours.mask().bool(), rendering.mask(n, {}).bool())
        if harp:
            assert ours.rate.item() == pytest.approx(rendering.rates[n].item(), rel=1e-6)
    for n, theirs in rendering.norms.items():
        assert close(model.get_parameter(n), theirs), n


def test_running_statistics_see_one_clean_and_one_adversarial_batch(narrow, batch):
    x, y = batch
    model, _, optimizer = searched(narrow(), harp=False)
    twin = copy.deepcopy(model)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(1e-6))
    step = iterate(
        model, x, y, objective=our_objective(), optimizer=optimizer, perturbation=perturbation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    twin.train()(x)
    twin(step.x_adv)
    assert model.bn1.num_batches_tracked == twin.bn1.num_batches_tracked == 2
    assert torch.allclose(model.bn1.running_mean, twin.bn1.running_mean)
    assert torch.allclose(model.bn2.running_var, twin.bn2.running_var)


def test_line_10_as_printed(narrow, batch):
    """Scores step by lr along the direction of the gradient at s + z; the others by their optimizer."""
    x, y = batch
    model, _, optimizer = searched(narrow().double(), harp=False)
    tensors = [mask.scores for mask in score_masks(model).values()]
    normalize_score_gradient(optimizer, tensors)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.05))
    gradients, norm_momentum = [], torch.zeros_like(model.bn1.weight)
    for index in range(2):
        before = [s.detach().clone() for s in tensors]
        norm_before = model.bn1.weight.detach().clone()

        def watched(network, x, x_adv, y):
            loss = our_objective().loss(network, x, x_adv, y)
            gradients[:] = torch.autograd.grad(loss, [*tensors, model.bn1.weight], retain_graph=True)
            return loss

        iterate(
            model, x.double(), y, objective=replace(our_objective(), loss=watched), optimizer=optimizer,
            perturbation=perturbation, generator=torch.Generator().manual_seed(index),
        )  # fmt: skip
        *score_gradients, norm_gradient = gradients  # those of the last pass, at s + z
        total = torch.cat([g.flatten() for g in score_gradients]).norm()
        for s, start, g in zip(tensors, before, score_gradients, strict=True):
            assert torch.allclose(s, start - 0.1 * g / total, rtol=1e-9, atol=1e-12)
        norm_momentum = 0.9 * norm_momentum + norm_gradient + 5e-4 * norm_before
        assert torch.allclose(model.bn1.weight, norm_before - 0.1 * norm_momentum, rtol=1e-9)


def test_awp_in_the_search_perturbs_masked_weights_and_moves_scores_alone(narrow, batch):
    x, y = batch
    model, _, optimizer = searched(narrow(), harp=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = copy.deepcopy(model)
    perturbation = Perturbation(model, weight_layers(model), radius=Relative(0.05))
    step = iterate(
        model, x, y, objective=our_objective(), optimizer=optimizer, perturbation=perturbation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert step.loss > perturbation.loss
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) is (name.endswith("original") or name == "linear.bias"), name
    # The scores' gradient is taken at w + z.
    with torch.no_grad():
        for layer, z in zip((expected.conv1, expected.conv2, expected.linear), perturbation.z, strict=True):
            layer.parametrizations.weight.original.add_(z)
    our_objective().loss(expected.train(), x, step.x_adv, y).backward()
    for ours, theirs in zip(score_masks(model).values(), score_masks(expected).values(), strict=True):
        assert close(ours.scores.grad, theirs.scores.grad)


def test_trackers_are_called_before_anything_changes(narrow, batch):
    x, y = batch
    model, _, optimizer = searched(narrow(), harp=False)
    before, seen = copy.deepcopy(model.state_dict()), []

    def on_attacked(x_adv):
        seen.append(x_adv)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.05))
    step = iterate(
        model, x, y, objective=our_objective(), optimizer=optimizer, perturbation=perturbation,
        generator=torch.Generator().manual_seed(0), on_attacked=on_attacked,
    )  # fmt: skip
    assert len(seen) == 1
    assert torch.equal(seen[0], step.x_adv)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_step_is_made_on_a_loss_that_is_not_finite(narrow, batch, bad):
    x, y = batch
    model = fix_masks(searched(narrow(), harp=False)[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    objective = replace(our_objective(), loss=lambda network, x, x_adv, y: bad * F.cross_entropy(network(x), y))
    step = iterate(model, x, y, objective=objective, optimizer=optimizer, generator=torch.Generator())
    assert not step.loss.isfinite()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
