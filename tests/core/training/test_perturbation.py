"""Lines 6 to 9 of Algorithm 1 against a naive rendering; what the perturbation must give back."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2ap_core.config import ObjectiveSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, fix_masks, masks, scores
from s2ap_core.training.ball import Relative, score_layers, weight_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import Objective, build_objective
from s2ap_core.training.perturbation import Perturbation, ascend_and_project

INFINITE = float("inf")


@pytest.fixture
def world(narrow, batch) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A masked network in float64 and train mode, and its loss, which depends on the batch's statistics."""
    model = attach(narrow(), 0.3).double().train()
    x, y = batch[0].double(), batch[1]
    return model, lambda network: F.cross_entropy(network(x), y) + F.cross_entropy(network(1 - x), y)


def gradient_at(model: nn.Module, loss: Callable[[nn.Module], Tensor], z: list[Tensor], weights: bool) -> list[Tensor]:
    """The gradient at s + z (or w + z), on a copy."""
    twin = copy.deepcopy(model)
    tensors = perturbed(twin, weights)
    with torch.no_grad():
        for tensor, z_l in zip(tensors, z, strict=True):
            tensor.add_(z_l)
    return list(torch.autograd.grad(loss(twin), tensors))


def stepping(lr: float) -> torch.optim.SGD:
    """An optimizer with this learning rate."""
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def perturbed(model: nn.Module, weights: bool) -> list[nn.Parameter]:
    if weights:
        return [p for name, p in model.named_parameters() if name.endswith("original")]
    return list(scores(model).values())


def norms(model: nn.Module, weights: bool) -> list[float]:
    """|s_l|, or |w_l m_l|."""
    if not weights:
        return [s.norm().item() for s in perturbed(model, weights)]
    return [(w * m).norm().item() for w, m in zip(perturbed(model, True), masks(model).values(), strict=True)]


def lines_6_to_9(z: list[Tensor], gradient: list[Tensor], radii: list[float], eta: float) -> list[Tensor]:
    """As printed: one norm over all layers, and a projection where a layer is outside its ball."""
    total = torch.cat([g.flatten() for g in gradient]).norm()
    found = []
    for z_l, g, radius in zip(z, gradient, radii, strict=True):
        z_l = z_l + eta * g / total
        if z_l.norm() > radius:
            z_l = radius / z_l.norm() * z_l
        found.append(z_l)
    return found


# Steps of these lengths project some layers and leave others inside their ball.
STEPS = {
    (False, False): 0.06,
    (False, True): 0.02,
    (True, False): 0.0212,
    (True, True): 0.0075,
}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    ("kind", "carry"), [("infinite", False), ("number", False), ("lr", False), ("lr", True), ("infinite", True)]
)
def test_the_perturbation_is_the_algorithms(world, weights, kind, carry):
    model, loss = world
    gamma, step = 0.01, STEPS[weights, carry]
    eta, lr = {"infinite": (INFINITE, 0.1), "number": (step, 0.1), "lr": ("lr", step)}[kind]
    tensors = perturbed(model, weights)
    before = [t.detach().clone() for t in tensors]
    layers = weight_layers(model) if weights else score_layers(model)
    perturbation = Perturbation(model, layers, radius=Relative(gamma), eta_z=eta, carry=carry)
    radii = [gamma * norm for norm in norms(model, weights)]
    # Infinitely far along the printed step, every layer is projected.
    printed = 1e9 if kind == "infinite" else step
    z = [torch.zeros_like(s) for s in before]
    for _ in range(3):
        if not carry:
            z = [torch.zeros_like(s) for s in before]
        z = lines_6_to_9(z, gradient_at(model, loss, z, weights), radii, printed)
        with perturbation.applied(lambda *_: loss(model), stepping(lr), 0):
            for tensor, s, z_l, found in zip(tensors, before, z, perturbation.z, strict=True):
                assert torch.allclose(found, z_l, rtol=1e-7, atol=1e-12)
                assert torch.equal(tensor, s + found)
    lengths = [found.norm().item() for found in perturbation.z]
    if kind == "infinite":
        assert lengths == pytest.approx(radii, rel=1e-12)
    else:
        inside = [length < 0.999 * radius for length, radius in zip(lengths, radii, strict=True)]
        assert set(inside) == {True, False}
        assert all(length <= radius * (1 + 1e-12) for length, radius in zip(lengths, radii, strict=True))
    if weights:
        assert not any(z_l[~m].any() for z_l, m in zip(perturbation.z, masks(model).values(), strict=True))


@pytest.mark.parametrize("eta", [INFINITE, 0.02])
def test_without_a_gradient_there_is_no_perturbation(world, eta):
    model, loss = world
    with torch.no_grad():
        model.conv2.parametrizations.weight.original.zero_()  # dL/ds = w sign(s) dL/d(wm)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.01), eta_z=eta)
    with perturbation.applied(lambda *_: loss(model), stepping(0.1), 0):
        conv1, conv2, linear = (z.norm() for z in perturbation.z)
    assert conv2 == 0
    assert linear > 0
    assert conv1 == 0  # nothing passes a layer of zeros


@pytest.mark.parametrize("eta", [INFINITE, 0.02])
@pytest.mark.parametrize(
    "entry",
    [0.0, float("nan"), INFINITE],
)
def test_gradients_without_a_direction_give_none(entry, eta):
    # A loss that is not finite is to be named as such, and not by the NaN that z would make of the scores.
    (z,) = ascend_and_project([torch.zeros(2)], [torch.tensor([0.0, entry])], [torch.ones(())], eta)
    assert z.tolist() == [0, 0]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("fails", ["", "block", "loss"])
def test_what_was_there_is_restored_to_the_last_bit(narrow, batch, weights, carry, fails):
    # float32, where adding z and taking it away again would not give s.
    model = attach(narrow(), 0.3).train()
    model.bn1.eval()
    x, y = batch
    calls = 0

    def loss(*_: object) -> Tensor:
        nonlocal calls
        calls += 1
        if fails == "loss" and calls == 2:
            raise KeyError
        return F.cross_entropy(model(x), y)

    for parameter in perturbed(model, True):
        parameter.requires_grad_(False)
    trained = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    layers = weight_layers(model) if weights else score_layers(model)
    perturbation = Perturbation(model, layers, radius=Relative(0.3), carry=carry)
    moved = 0
    for _ in range(3):
        try:
            with perturbation.applied(loss, stepping(0.1), 0):
                now = model.state_dict()
                moved += any(not torch.equal(now[k], state[k]) for k in now)
                # The running statistics have seen nothing of the extra pass.
                assert all(torch.equal(now[k], state[k]) for k in now if "bn" in k)
                if fails == "block":
                    raise KeyError
        except KeyError:
            assert fails
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == trained
        assert all(p.grad is None for p in model.parameters())
    assert moved == (2 if fails == "loss" else 3)
    model.train()(x)
    assert not torch.equal(model.bn1.running_mean, state["bn1.running_mean"])  # statistics move again


def test_a_perturbation_reports_the_loss_it_started_from_and_says_when_it_is_in_force(world):
    model, loss = world
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.5))
    seen = []
    perturbation.on_perturbed = lambda: seen.append(masks(model))
    before, expected = masks(model), loss(copy.deepcopy(model)).item()
    with perturbation.applied(lambda *_: loss(model), stepping(0.1), 0):
        flipped = masks(model)
    assert perturbation.loss.item() == pytest.approx(expected, rel=1e-12)
    assert len(seen) == 1
    assert all(torch.equal(seen[0][name], flipped[name]) for name in flipped)
    assert any(not torch.equal(before[name], flipped[name]) for name in flipped)


def test_awp_keeps_pruned_weights_at_zero_and_moves_the_others(narrow, batch):
    model = fix_masks(attach(narrow(), 0.3)).train()
    held = masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    perturbation = Perturbation(model, weight_layers(model), radius=Relative(0.05))
    before = [w.detach().clone() for w in perturbed(model, True)]
    for _ in range(3):
        with perturbation.applied(lambda *_: F.cross_entropy(model(batch[0]), batch[1]), stepping(0.1), 0):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    for weight, start, mask in zip(perturbed(model, True), before, held.values(), strict=True):
        assert not weight[~mask].any()
        assert (weight != start)[mask].all()


class WithUnused(nn.Module):
    """A network with a masked layer that its forward pass leaves out, as layer drop does."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.used, self.aux = nn.Flatten(), nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.flatten(x))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("source", ["pass", "attack"])
def test_a_layer_that_the_loss_does_not_use_is_not_perturbed_and_changes_nothing(batch, weights, source):
    if weights and source == "attack":
        return
    x, y = batch
    torch.manual_seed(0)
    model = attach(WithUnused(), 0.3)
    alone = attach(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0.3)
    with torch.no_grad():
        for mine, other in zip(alone[1].parameters(), model.used.parameters(), strict=True):
            mine.copy_(other)
    found = []
    for network in (model, alone):
        layers = (weight_layers if weights else score_layers)(network)
        perturbation = Perturbation(network, layers, radius=Relative(0.1), source=source)
        perturbation.reads_curvature = True
        iterate(
            network, x, y, objective=build_objective(ObjectiveSettings(steps=2)),
            optimizer=torch.optim.SGD(perturbed(network, weights), lr=0.1), perturbation=perturbation,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append((perturbation.z, perturbation.curvature))
    (with_unused, curvature), (without, expected) = found
    assert torch.equal(with_unused[0], without[0])
    assert without[0].any()
    assert not with_unused[1].any()
    if source == "pass":
        assert torch.equal(curvature[0], torch.stack([*expected[0], torch.tensor(0.0)]))


def test_an_attack_that_leaves_no_gradient_is_no_source(batch):
    x, y = batch
    model = attach(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0.3)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.1), source="attack")
    published = build_objective(ObjectiveSettings())
    own = Objective("own", lambda model, x, y, g: (x + 0.01).clamp(0, 1), published.loss)
    with pytest.raises(InputError, match="source = attack"):
        iterate(
            model, x, y, objective=own, optimizer=torch.optim.SGD(perturbed(model, False), lr=0.1),
            perturbation=perturbation, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_the_pass_for_z_leaves_all_running_statistics_alone(norm, batch):
    x, y = batch
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4, track_running_stats=True), nn.Flatten(), nn.Linear(144, 10))
    attach(model, 0.5).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.1))
    with perturbation.applied(lambda: F.cross_entropy(model(x), y), stepping(0.1), 0):
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert len(before) == 3
    model(x)
    assert not torch.equal(model[1].running_var, before["1.running_var"])  # statistics move again
