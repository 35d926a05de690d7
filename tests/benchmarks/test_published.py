"""The published step that the benchmarks compare with computes what our iteration computes."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import published
from s2ap_core.config import ObjectiveSettings, PruneSettings
from s2ap_core.masks.masking import masks, scores
from s2ap_core.methods import MethodSettings, build_method
from s2ap_core.models import build
from s2ap_core.seeds import generator
from s2ap_core.training.iteration import iterate
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.optimization import searched_parameters

KEEP = 0.3
THREAT = published.Trades(eps=32 / 255, step=8 / 255, steps=3, beta=6.0)
SETTINGS = ObjectiveSettings(eps="32/255", step="8/255", steps=3, beta=6.0)


@pytest.fixture
def pair():
    """The same small network in float64 twice, one prepared by us and one by the rendering."""
    torch.manual_seed(0)
    ours = build("resnet18", width=2, input_size=8, input_channels=1).double().train()
    theirs = published.attach(copy.deepcopy(ours), KEEP)
    build_method(MethodSettings(keep=KEEP)).attach(ours, generator("cpu", 0, "scores"))
    return ours, theirs


def popups(model):
    return {
        name.removesuffix(".parametrizations.weight.0"): module
        for name, module in model.named_modules()
        if isinstance(module, published.Popup)
    }


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def run_both(ours, theirs, iterations):
    """Run both on the same batches and noise; yields the two losses after each iteration."""
    trained = [p for p in theirs.parameters() if p.requires_grad]
    searched = searched_parameters(ours, PruneSettings())
    optimizers = [torch.optim.SGD(p, lr=0.1, momentum=0.9) for p in (searched, trained)]
    for i in range(iterations):
        rng = generator("cpu", 1, i)
        x = torch.rand(8, 1, 8, 8, generator=rng, dtype=torch.float64)
        y = torch.randint(0, 10, (8,), generator=rng)
        noise = [generator("cpu", 2, i) for _ in range(2)]
        step = iterate(ours, x, y, objective=build_objective(SETTINGS), optimizer=optimizers[0], generator=noise[0])
        loss, _ = published.step(theirs, x, y, optimizer=optimizers[1], generator=noise[1], trades=THREAT)
        yield step.loss.item(), loss


def test_equal_mask_loss_and_gradient_at_equal_statistics(pair):
    ours, theirs = pair
    for norm in norms(ours) + norms(theirs):
        norm.momentum = 0.0  # statistics stay, or the two, who make different passes, would see other ones
    first = masks(ours)
    for loss, published_loss in run_both(ours, theirs, iterations=4):
        assert loss == pytest.approx(published_loss, rel=1e-10)
        their_popups = popups(theirs)
        for name, own in scores(ours).items():
            popup = their_popups[name.removesuffix(".scores")]
            torch.testing.assert_close(own.grad, popup.scores.grad, rtol=1e-7, atol=1e-12)
            torch.testing.assert_close(own, popup.scores, rtol=1e-9, atol=1e-12)
        for name, mask in masks(ours).items():
            popup = their_popups[name.removesuffix(".weight")]
            assert torch.equal(mask, published.SortedMask.apply(popup.scores.abs(), KEEP).bool())
        for own, other in zip(norms(ours), norms(theirs), strict=True):
            torch.testing.assert_close(own.weight.grad, other.weight.grad, rtol=1e-7, atol=1e-12)
    assert any((mask != first[name]).any() for name, mask in masks(ours).items())  # the search did move


def test_the_rendering_makes_four_train_mode_passes_and_sorts_in_every_pass(pair, monkeypatch):
    ours, theirs = pair
    sorts = 0
    sorting = published.SortedMask.forward

    def counted(*args):
        nonlocal sorts
        sorts += 1
        return sorting(*args)

    monkeypatch.setattr(published.SortedMask, "forward", staticmethod(counted))
    list(run_both(ours, theirs, iterations=1))
    assert {int(norm.num_batches_tracked) for norm in norms(theirs)} == {4}
    assert {int(norm.num_batches_tracked) for norm in norms(ours)} == {2}
    assert sorts == (4 + 2 * THREAT.steps) * len(popups(theirs))
