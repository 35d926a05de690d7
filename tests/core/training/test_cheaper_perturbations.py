"""The cheaper ways to a perturbation: what they save, and what z they give."""

import torch
from torch import nn

from s2ap_core.masks.masking import attach, scores
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import Objective
from s2ap_core.training.perturbation import Perturbation, score_layers


def world(**options):
    torch.manual_seed(0)
    model = attach(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 0.5)
    perturbation = Perturbation(model, score_layers(model), gamma=0.1, **options)
    x, y = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
    seen = []

    def loss(model, x, x_adv, y):
        seen.append(len(y))
        return nn.functional.cross_entropy(model(x_adv), y)

    optimizer = torch.optim.SGD(list(scores(model).values()), lr=0.1)

    def step():
        seen.clear()
        objective = Objective("plain", lambda model, x, y, generator: x, loss)
        options = {"optimizer": optimizer, "generator": torch.Generator(), "perturbation": perturbation}
        iterate(model, x, y, objective=objective, **options)
        return list(seen)

    return model, perturbation, step


def test_a_single_step_ascends_along_the_last_gradient_without_a_pass():
    model, perturbation, step = world(single_step=True)
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
