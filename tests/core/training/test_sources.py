"""Other ways to a perturbation than the extra pass, and other directions: what they cost, and what z they give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2ap_core.config import MethodSettings, ObjectiveSettings
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_core.methods import build_method
from s2ap_core.training.ball import Relative, score_layers
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import Objective, build_objective
from s2ap_core.training.perturbation import Perturbation


def world(**options):
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 0.5)
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.1), **options)
    x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
    seen = []

    def loss(model, x, x_adv, y):
        seen.append(len(y))
        return nn.functional.cross_entropy(model(x_adv), y)

    optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.1, momentum=0.9)

    def step():
        seen.clear()
        objective = Objective("plain", lambda model, x, y, generator: x, loss)
        options = {"optimizer": optimizer, "generator": torch.Generator(), "perturbation": perturbation}
        iterate(model, x, y, objective=objective, **options)
        return list(seen)

    step.optimizer = optimizer
    return model, perturbation, step


def test_a_single_step_ascends_along_the_last_gradient_without_a_pass():
    model, perturbation, step = world(source="last")
    assert step() == [8, 8]  # the first has no gradient to go by
    before = [tensor.detach().clone() for tensor in scores(model).values()]
    last = [tensor.grad.clone() for tensor in scores(model).values()]
    assert step() == [8]
    for z, s, g in zip(perturbation.z, before, last, strict=True):
        assert torch.allclose(z, 0.1 * s.norm() * g / g.norm())
    perturbation.begin_epoch()
    assert step() == [8, 8]


def test_the_extra_pass_sees_a_share_of_the_batch():
    _, _, step = world(subset=0.25)
    assert step() == [2, 8]


def test_one_perturbation_serves_several_iterations():
    _, perturbation, step = world(every=3)
    passes, kept = [], []
    for _ in range(6):
        passes.append(len(step()))
        kept.append([z.clone() for z in perturbation.z])
    assert passes == [2, 1, 1, 2, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[2], kept[3], strict=True))


def test_momentum_ascends_along_the_optimizers_without_a_pass():
    model, perturbation, step = world(source="momentum")
    assert step() == [8, 8]  # SGD has none yet
    before = [tensor.detach().clone() for tensor in scores(model).values()]
    momentum = [step.optimizer.state[tensor]["momentum_buffer"].clone() for tensor in scores(model).values()]
    assert step() == [8]
    for z, s, m in zip(perturbation.z, before, momentum, strict=True):
        assert torch.allclose(z, 0.1 * s.norm() * m / m.norm())


def test_reversed_goes_the_other_way_and_random_and_shuffled_make_no_pass():
    found = {}
    for direction in ("gradient", "reversed"):
        _, perturbation, step = world(direction=direction)
        assert step() == [8, 8]
        found[direction] = perturbation.z
    assert all(torch.equal(a, -b) for a, b in zip(*found.values(), strict=True))
    model, perturbation, step = world(direction="random")
    norms = [0.1 * s.norm() for s in scores(model).values()]
    assert step() == [8]
    first = perturbation.z
    assert all(torch.allclose(z.norm(), n) for z, n in zip(first, norms, strict=True))
    model, perturbation, step = world(direction="shuffled")
    assert step() == [8, 8]  # the first has no last gradient to shuffle
    last = [tensor.grad.clone() for tensor in scores(model).values()]
    assert step() == [8]
    for z, g in zip(perturbation.z, last, strict=True):
        ascending = [(t / t.norm()).flatten().sort().values for t in (z, g)]
        assert torch.allclose(*ascending)  # the same entries ...
        assert not torch.allclose(z / z.norm(), g / g.norm())  # ... elsewhere


def test_a_direction_that_is_drawn_depends_on_the_seed_alone():
    drawn = []
    for seed in (0, 0, 1):
        model, perturbation, _ = world(direction="random")
        optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.1)
        torch.rand(seed + 3)  # the global generator has no part in it
        with perturbation.applied(lambda: torch.tensor(0.0), optimizer, seed):
            drawn.append(perturbation.z)
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize(
    ("method", "norm"), [("hydra", "Linf"), ("hydra", "L2"), ("hydra", "L1"), ("harp-channels", "Linf")]
)
@pytest.mark.parametrize("name", ["trades", "pgd-at", "mart", "fast-at"])
def test_the_attacks_last_pass_gives_the_gradient_of_its_loss_in_the_scores(name, method, norm, narrow, batch):
    """Against autograd through the masks at the attack's last but one images, by the loss that it ascends."""
    x, y = batch
    model = narrow().train()
    budget = {"flops_reduction": 1.5} if "channels" in method else {"keep": 0.3}
    attached = build_method(MethodSettings(name=method, **budget))
    attached.image_shape = (1, 8, 8)
    attached.attach(model, torch.Generator().manual_seed(0))
    steps = 1 if name == "fast-at" else 3
    objective = build_objective(ObjectiveSettings(name=name, norm=norm, eps="32/255", step="8/255", steps=3))
    perturbation = Perturbation(model, score_layers(model), radius=Relative(0.1), source="attack")
    passes, twin = [], copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.0)
    handle = model.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].detach().clone()))
    iterate(
        model, x, y, objective=objective, optimizer=optimizer, perturbation=perturbation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    handle.remove()
    clean = F.softmax(twin(x), dim=1).detach()
    attacked = passes[steps - (name != "trades")]
    logits = twin(attacked)
    loss = F.cross_entropy(logits, y, reduction="sum")
    if name == "trades":
        loss = F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="sum")
    expected = torch.autograd.grad(loss, list(scores(twin).values()))
    assert len(passes) == steps + (name == "trades") + (2 if name in ("trades", "mart") else 1)  # none for z
    for z, g, s in zip(perturbation.z, expected, scores(model).values(), strict=True):
        assert torch.allclose(z, 0.1 * s.norm() * g / g.norm(), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 1e-6])
def test_the_curvature_along_z_is_that_of_two_gradients_taken_apart(gamma, narrow, batch):
    x, y = batch
    model = attach(narrow(), 0.3).double().train()
    x = x.double()
    objective = build_objective(ObjectiveSettings(eps="32/255", step="8/255", steps=2))
    perturbation = Perturbation(model, score_layers(model), radius=Relative(gamma))
    perturbation.reads_curvature = True
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.1)
    step = iterate(
        model, x, y, objective=objective, optimizer=optimizer, perturbation=perturbation,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    gradients = []
    for moved in (0.0, 1.0):
        twin = copy.deepcopy(before)
        with torch.no_grad():
            for s, z in zip(scores(twin).values(), perturbation.z, strict=True):
                turned = (s + z) * s < 0
                s.add_(moved * z)
                # The gradient passes through |s|: a score that z carries past 0 is put back to its own side.
                s[turned] *= -1 if moved else 1
        gradients.append(torch.autograd.grad(objective.loss(twin, x, step.x_adv, y), list(scores(twin).values())))
    products, squares = perturbation.curvature
    flips = sum(int((a ^ b).sum()) for a, b in zip(masks(twin).values(), masks(before).values(), strict=True))
    for product, square, at_s, there, z in zip(products, squares, *gradients, perturbation.z, strict=True):
        assert square == pytest.approx(float(z.square().sum()), rel=1e-12)
        assert product == pytest.approx(float(((there - at_s) * z).sum()), rel=1e-6, abs=1e-12)
    if gamma == 1e-6:
        assert flips == 0
        assert not products.any()
    else:
        assert flips > 10
        assert products.all()


def test_without_the_gradient_at_s_there_is_no_curvature():
    for options in ({"source": "last"}, {"direction": "random"}, {"subset": 0.5}):
        _, perturbation, step = world(**options)
        perturbation.reads_curvature = True
        step()
        step()
        assert perturbation.curvature is None
