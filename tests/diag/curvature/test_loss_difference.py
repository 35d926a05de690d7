"""The loss difference against enumeration of the reachable masks."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import s2ap_core.masks.topk
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, masks, scores
from s2ap_diag.curvature.loss_difference import loss_difference, loss_differences
from s2ap_diag.stability.margins import score_margins


def network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    model = attach(nn.Sequential(*layers).double(), keep=0.5)
    return model, [(torch.randn(10, 6).double(), torch.arange(10) % 3) for _ in range(3)]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def one_layer() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    model = attach(nn.Linear(8, 1, bias=False).double(), keep=0.5)
    with torch.no_grad():
        scores(model)["scores"].copy_(torch.tensor([[1.0, -1.1, 1.2, 1.31, -1.43, 1.5, 1.66, -1.8]]))
    return model, (torch.randn(30, 8).double(), torch.randn(30, 1).double())


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("ascent", ["exchange", "auto-pgd"])
@pytest.mark.parametrize("rho", [0.02, 0.06, 0.15, 0.3])
def test_no_mask_in_reach_is_worse_than_the_worst_case_and_the_flips_are_those_of_such_a_mask(
    rho: float, ascent: str
) -> None:
    # The loss depends on v through the mask alone, and every reachable mask is reached at a corner.
    model, batch = one_layer()
    s = scores(model)["scores"].detach().clone()
    own = masks(model)["weight"]
    flips_of: dict[float, int] = {}
    for signs in itertools.product((-1.0, 1.0), repeat=8):
        with torch.no_grad():
            scores(model)["scores"].copy_(s * (1 + rho * torch.tensor(signs)))
            flips_of[float(mse(model, batch))] = int((masks(model)["weight"] != own).sum())
            scores(model)["scores"].copy_(s)
    reference = float(mse(model, batch).detach())
    found = loss_difference(model, mse, [batch], rho=rho, ascent=ascent, restarts=5, draws=50)
    assert found.reference == (reference,)
    worst = min(flips_of, key=lambda loss: abs(loss - reference - found.mean))
    assert worst == pytest.approx(reference + found.mean)
    assert found.flips == (flips_of[worst],)
    assert worst <= max(flips_of)
    if rho == 0.15 or ascent == "exchange":  # with so few masks in reach the ascent finds the worst of them
        assert worst == max(flips_of) >= reference


@pytest.mark.parametrize(("rho", "pairs"), [(0.02, 0), (0.05, 1), (0.12, 2), (0.22, 3), (0.5, 4)])
def test_the_worst_case_is_known_where_every_exchange_of_two_entries_costs_the_same(rho: float, pairs: int) -> None:
    # L = the sum of the kept weights; the kept are all -1 and the dropped +1, so each pair costs 2.
    model, _ = one_layer()
    magnitude = scores(model)["scores"].detach().abs()[0]
    kept = masks(model)["weight"][0]
    with torch.no_grad():
        model.parametrizations.weight.original.copy_(torch.where(kept, -1.0, 1.0)[None])
    down, up = magnitude[kept].sort().values, magnitude[~kept].sort(descending=True).values
    assert int((down * (1 - rho) < up * (1 + rho)).sum()) == pairs
    ones = torch.ones(1, 8).double()
    found = loss_difference(model, lambda m, batch: m(batch[0]).mean(), [(ones,)], rho=rho)
    assert found.mean == pytest.approx(2 * pairs)
    assert found.flips == (2 * pairs,)
    assert score_margins(model, rho).flippable * 8 == 2 * pairs


def test_below_the_smallest_margin_nothing_changes() -> None:
    model, batch = one_layer()
    assert score_margins(model, 0.02).flippable == 0
    found = loss_difference(model, mse, [batch], rho=0.02)
    assert (found.mean, found.average_case, found.flips) == (0.0, 0.0, (0,))


def test_statistics_over_batches() -> None:
    model, batches = network()
    options = {"rho": 0.2, "ascent": "auto-pgd", "restarts": 1}  # no chance in it
    alone = [loss_difference(model, cross_entropy, [batch], **options) for batch in batches]
    found = loss_difference(model, cross_entropy, batches, **options)
    values = [one.mean for one in alone]
    assert found.per_batch == pytest.approx(values)
    assert found.flips == tuple(one.flips[0] for one in alone)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert found.standard_error == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    assert found.flips_mean == pytest.approx(np.mean(found.flips))
    assert found.flips_standard_error == pytest.approx(np.std(found.flips, ddof=1) / 3**0.5)
    assert alone[0].std is alone[0].flips_standard_error is alone[0].average_case_standard_error is None
    assert min(values) > 0
    assert min(found.flips) > 0
    assert found.average_case < found.mean


def test_a_batch_weighs_as_much_as_its_images() -> None:
    # Twice the same images have the loss of the images once, and count twice.
    model, (a, b, _) = network()
    options = {"rho": 0.2, "ascent": "auto-pgd", "restarts": 1}
    twice = (torch.cat([a[0], a[0]]), torch.cat([a[1], a[1]]))
    uneven = loss_difference(model, cross_entropy, [twice, b], **options)
    even = loss_difference(model, cross_entropy, [a, a, b], **options)
    assert uneven.per_batch[0] == pytest.approx(even.per_batch[0])
    assert abs(uneven.per_batch[0] - uneven.per_batch[1]) > 1e-3
    assert uneven.mean == pytest.approx(even.mean)
    assert uneven.flips_mean == pytest.approx(even.flips_mean)
    # The sample deviation of two values a, b with weights 2/3, 1/3: sqrt(2 (2/3) (1/3)) |a - b|.
    assert uneven.std == pytest.approx(2 / 3 * abs(uneven.per_batch[0] - uneven.per_batch[1]))


def test_the_errors_of_the_average_case_are_its_scatter_over_seeds() -> None:
    # Over batches that are all the same there is no other chance than that of the draws.
    model, batch = one_layer()
    found = [
        loss_difference(model, mse, [batch] * 2, rho=0.3, draws=4, steps=1, restarts=1, seed=seed) for seed in range(60)
    ]
    scatter = np.std([one.average_case for one in found], ddof=1)
    for name in ("average_case_monte_carlo_error", "average_case_standard_error"):
        assert np.mean([getattr(one, name) ** 2 for one in found]) ** 0.5 == pytest.approx(scatter, rel=0.35)
    once = loss_difference(model, mse, [batch], rho=0.3, draws=1)
    assert once.average_case_monte_carlo_error is None


@pytest.mark.parametrize("ascent", ["exchange", "auto-pgd"])
def test_restarts_never_find_less(ascent: str) -> None:
    model, batches = network()
    once = loss_difference(model, cross_entropy, batches, rho=0.5, ascent=ascent, steps=4, restarts=1)
    often = loss_difference(model, cross_entropy, batches, rho=0.5, ascent=ascent, steps=4, restarts=6)
    assert all(b >= a for a, b in zip(once.per_batch, often.per_batch, strict=True))
    assert often.mean > once.mean


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", ["score", "one"])
def test_every_point_evaluated_lies_in_the_ball_and_the_first_is_s(norm: str, scale: str) -> None:
    model, batches = network()
    with torch.no_grad():
        scores(model)["0.scores"][0, 0] = 0.0
    s = torch.cat([p.detach().reshape(-1) for p in scores(model).values()])
    seen: list[Tensor] = []

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(torch.cat([p.detach().reshape(-1) for p in scores(m).values()]) - s)
        return cross_entropy(m, batch)

    loss_difference(model, loss, batches[:1], rho=0.1, norm=norm, scale=scale, steps=8, restarts=2)
    v = torch.stack(seen)
    u = v / (s.abs() if scale == "score" else 1)
    if scale == "score":
        assert torch.equal(v[:, 0], torch.zeros(len(v)).double())  # c = 0: the entry cannot move
        u[:, 0] = 0
    size = u.abs().amax(1) if norm == "linf" else u.norm(dim=1)
    assert size[0] == 0
    assert size.max() == pytest.approx(0.1, rel=1e-9)  # reaches the boundary and stays within


@pytest.mark.parametrize("ascent", ["exchange", "auto-pgd"])
def test_a_step_costs_one_forward_and_one_selection_and_if_it_rises_one_backward(
    monkeypatch: pytest.MonkeyPatch, ascent: str
) -> None:
    model, batches = network()
    counts = {"selections": 0, "forward": 0, "backward": 0}
    select = s2ap_core.masks.topk.topk_mask

    def counted(magnitude: Tensor, n_keep: int) -> Tensor:
        counts["selections"] += 1
        return select(magnitude, n_keep)

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        counts["forward"] += 1
        value = cross_entropy(m, batch) + m(batch[0] + 0.1).square().mean()  # clean and adversarial
        if value.requires_grad:
            value.register_hook(lambda g: counts.update(backward=counts["backward"] + 1))
        return value

    monkeypatch.setattr(s2ap_core.masks.topk, "topk_mask", counted)
    rhos, options = (0.1, 0.2), {"ascent": ascent, "steps": 20, "restarts": 2, "draws": 3}
    found = loss_differences(model, loss, batches[:2], rhos, **options)
    # L(s) once, two ascents of 20 steps at each radius, of which Auto-PGD's second has a start of its own; the draws.
    steps = 2 * 20 + (ascent == "auto-pgd")
    assert [one.forward_passes for one in found] == [2 * (1 + steps + 3), 2 * (steps + 3)]
    assert counts["forward"] == sum(one.forward_passes for one in found)
    assert counts["backward"] == sum(one.backward_passes for one in found)
    without_draws = counts["forward"] - 2 * 2 * 3
    assert counts["backward"] == without_draws if ascent == "auto-pgd" else counts["backward"] < without_draws
    # Two layers per evaluation, beside the masks at s and at the worst v of each batch and radius.
    assert counts["selections"] == 2 * (counts["forward"] + 1 + 4)


@pytest.mark.parametrize("mode", ["running", "batch"])
@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_left_bit_for_bit_as_it_was(mode: str, breaks: bool) -> None:
    model, batches = network()
    model.train()
    cross_entropy(model, batches[0]).backward()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    parameters = list(model.parameters())
    calls = []

    def loss(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        if breaks and len(calls) == 5:
            raise KeyboardInterrupt
        return cross_entropy(m, batch)

    if breaks:
        with pytest.raises(KeyboardInterrupt):
            loss_difference(model, loss, batches, rho=0.3, batch_norm=mode)
    else:
        with torch.no_grad():
            assert loss_difference(model, loss, batches, rho=0.3, batch_norm=mode).mean > 0
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_batch_norm_s_mode_changes_the_reading() -> None:
    model, batches = network()
    running, batch = (
        loss_difference(model, cross_entropy, batches, rho=0.1, batch_norm=mode) for mode in ("running", "batch")
    )
    model.eval()
    assert running.reference[0] == pytest.approx(cross_entropy(model, batches[0]).item())
    model.train()
    assert batch.reference[0] == pytest.approx(cross_entropy(model, batches[0]).item())
    assert abs(running.mean - batch.mean) > 1e-3


def test_recrafted_examples_are_made_at_s_plus_v_before_each_evaluation() -> None:
    model, batches = network()
    seen: list[Tensor] = []

    def fgsm(m: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(scores(m)["0.scores"].detach().clone())
        x = batch[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(m, (x, batch[1])), x)
        return (batch[0] + 0.2 * gradient.sign(), batch[1])

    model.eval()
    attacked = cross_entropy(model, fgsm(model, batches[0])).item()
    seen.clear()
    with torch.no_grad():  # an attack needs gradients, whatever the caller's grad mode
        found = loss_difference(model, cross_entropy, batches[:1], rho=0.2, recraft=fgsm, draws=2)
    assert found.recrafted
    assert found.reference[0] == pytest.approx(attacked)
    assert len(seen) == found.forward_passes == 1 + 2 * 20 + 2
    assert torch.equal(seen[0], scores(model)["0.scores"])
    assert not torch.equal(seen[1], seen[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho = -0.1"),
        ({"rho": float("nan")}, "rho = nan"),
        ({"rho": 0.1, "steps": 0}, "steps = 0"),
        ({"rho": 0.1, "restarts": 0}, "restarts = 0"),
        ({"rho": 0.1, "norm": "l1"}, "norm = 'l1'"),
        ({"rho": 0.1, "ascent": "descent"}, "ascent = 'descent'"),
        ({"rho": 0.1, "ascent": "exchange", "norm": "l2"}, "ascent = 'exchange' keeps to the linf ball"),
        ({"rho": 0.1, "scale": "rank"}, "scale = 'rank'"),
        ({"rho": 0.1, "batch_norm": "train"}, "batch_norm = 'train'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    model, batches = network()
    with pytest.raises(InputError, match=message):
        loss_difference(model, cross_entropy, batches, **options)


def test_a_loss_that_is_not_finite_is_named() -> None:
    model, batches = network()
    broken = [(batches[0][0] * torch.inf, batches[0][1])]
    with pytest.raises(InputError, match="the loss is nan"):
        loss_difference(model, cross_entropy, broken, rho=0.1)
