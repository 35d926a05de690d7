"""Auto-PGD against known maxima and the authors' code."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from scipy.optimize import minimize
from torch import Tensor

from s2ap_diag.curvature.ascent import Place, auto_pgd, checkpoints


def quadratic(a: Tensor, b: Tensor) -> Callable[[Tensor], Place]:
    """x -> b'x - x'Ax / 2 and its gradient."""
    return lambda x: Place(x, float(b @ x - 0.5 * x @ a @ x), b - a @ x)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(20, {5, 9, 12, 14, 16, 18, 19, 20}), (100, {22, 41, 57, 70, 80, 87, 93, 99})],
)
def test_checkpoints_are_those_of_croce_and_hein(steps: int, expected: set[int]) -> None:
    assert checkpoints(steps) == expected


def test_auto_pgd_finds_the_corner_where_a_convex_quadratic_on_a_box_is_largest() -> None:
    torch.manual_seed(0)
    b, radius = torch.randn(30).double(), 0.1
    f = quadratic(-torch.eye(30).double(), b)
    found = auto_pgd(f, f(torch.zeros(30).double()), radius=radius)
    assert found.value == pytest.approx(radius * float(b.abs().sum()) + 0.5 * 30 * radius**2)
    assert torch.equal(found.u, radius * b.sign())
    assert torch.equal(found.gradient, b + found.u)


def test_auto_pgd_halves_its_step_to_reach_an_interior_maximum() -> None:
    # With the step at its first length, 2 radius, it would jump between the faces of the box for ever.
    torch.manual_seed(0)
    center = 0.1 * (torch.rand(20).double() - 0.5)
    f = quadratic(torch.eye(20).double(), center)
    found = auto_pgd(f, f(torch.zeros(20).double()), radius=0.1, steps=200)
    assert (found.u - center).abs().max() < 5e-3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_comes_close_to_the_optimum_of_a_coupled_quadratic(norm: str) -> None:
    torch.manual_seed(2)
    root, b, radius = torch.randn(8, 8).double(), torch.randn(8).double(), 0.3
    a = root @ root.T / 8
    constraint = {"type": "ineq", "fun": lambda x: radius**2 - x @ x}
    peer = minimize(
        lambda x: 0.5 * x @ a.numpy() @ x - b.numpy() @ x,
        np.zeros(8),
        bounds=[(-radius, radius)] * 8,
        constraints=[constraint] if norm == "l2" else [],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    f = quadratic(a, b)
    found = auto_pgd(f, f(torch.zeros(8).double()), radius=radius, norm=norm, steps=100)
    assert found.value == pytest.approx(-peer.fun, rel=1e-3)
    size = found.u.abs().max() if norm == "linf" else found.u.norm()
    assert size <= radius * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_takes_the_steps_of_the_authors_code(norm: str) -> None:
    # Their attack on an "image" x = 1/2 + v with the cross-entropy log(1 + exp(f(v))), which has the order
    # and the directions of f. Momentum, projection, the checks after 22, 41 and 57 steps and the restarts
    # from the best all show in the path; later, theirs counts rises from before a restart, the paper not.
    torch.manual_seed(2)
    root, b = torch.randn(6, 6), 0.1 * torch.randn(6)
    f = quadratic(root @ root.T, b)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []

    def recorded(x: Tensor) -> Place:
        ours.append(x)
        return f(x)

    def two_logits(image: Tensor) -> Tensor:
        v = image[0] - 0.5
        theirs.append(v.detach())
        value = b @ v - 0.5 * v @ root @ root.T @ v
        return torch.stack([torch.zeros_like(value), value])[None]

    auto_pgd(recorded, recorded(torch.zeros(6)), radius=0.1, norm=norm, steps=100)
    attack = APGDAttack(
        two_logits, n_iter=100, norm={"linf": "Linf", "l2": "L2"}[norm], eps=0.1, device=torch.device("cpu")
    )
    image = torch.full((1, 6), 0.5)
    attack.init_hyperparam(image)
    attack.attack_single_run(image, torch.zeros(1, dtype=torch.long), x_init=image)
    torch.testing.assert_close(torch.stack(ours[:60]), torch.stack(theirs[:60]), rtol=0, atol=1e-5)


def test_auto_pgd_returns_the_best_point_it_saw_not_the_last() -> None:
    values = iter([0.0] * 30 + [7.0] + [1.0] * 70)
    seen: list[Tensor] = []

    def scripted(x: Tensor) -> Place:
        seen.append(x)
        return Place(x, next(values), torch.tensor([1.0, -1.0]) * (-1) ** len(seen))

    found = auto_pgd(scripted, scripted(torch.zeros(2)), radius=1.0, steps=100)
    assert found.value == 7.0
    assert torch.equal(found.u, seen[30])
    assert not torch.equal(found.u, seen[-1])
    assert len(seen) == 101


def test_auto_pgd_also_halves_its_step_when_the_best_stalls_but_never_twice_for_that_in_a_row() -> None:
    # The value rises in nearly every step but stays below its start: condition 2 alone is at work. It holds
    # at the check after 22 steps, not after 41 as the step was just halved, and again after 57.
    values = iter([100.0, *range(100)])
    seen: list[float] = []

    def scripted(x: Tensor) -> Place:
        seen.append(float(x))
        return Place(x, next(values), torch.ones(1))

    auto_pgd(scripted, scripted(torch.zeros(1)), radius=1.0, steps=100)
    # A restart from 0 with momentum from 1 leads to 3/4 of the step, at most 1, less 1/4.
    assert [seen[k] for k in (22, 23, 42, 58)] == pytest.approx([1, 0.75 - 0.25, 1, 0.75 * 0.5 - 0.25])
