"""Batches in whatever container they come, held against the same ones as a list of tuples."""

import warnings
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from s2ap_core.errors import InputError
from s2ap_diag import PyHessian, ScoreHessian, lambda_max, loss_difference
from s2ap_diag.curvature.batches import samples_in
from tests.spectra import cross_entropy, network


def by_name(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("solver", [{}, {"solver": PyHessian()}])
def test_dicts_give_what_tuples_give(kind, solver):
    model, batches = network()
    expected = lambda_max(ScoreHessian(model, cross_entropy, batches), **solver)
    named = [kind({"y": y, "x": x, "name": "a word"}) for x, y in batches]
    found = lambda_max(ScoreHessian(model, by_name, named), **solver)
    assert found.lambda_max == expected.lambda_max


def test_a_loader_that_shuffles_is_held_as_a_list_with_a_word():
    model, batches = network()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    with pytest.warns(UserWarning, match="a DataLoader, held as a list of 5") as caught:
        hessian = ScoreHessian(model, cross_entropy, loader)
    assert caught[0].filename == __file__
    assert hessian.symmetry_defect() < 1e-12  # which other batches in each pass would not have


def test_a_generator_is_held_as_a_list():
    model, batches = network()
    expected = loss_difference(model, cross_entropy, batches, rho=0.1)
    with pytest.warns(UserWarning, match="a generator, held as a list of 2"):
        assert loss_difference(model, cross_entropy, (batch for batch in batches), rho=0.1) == expected


def test_lists_and_tuples_are_taken_without_a_word():
    model, batches = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScoreHessian(model, cross_entropy, tuple(batches))


@pytest.mark.parametrize("take", [lambda batches: batches[0], lambda batches: {"x": batches[0][0]}, lambda _: ["x"]])
def test_one_batch_in_place_of_several_is_refused(take):
    model, batches = network()
    with pytest.raises(InputError, match=r"batches: one of them is a \w+; give a list of tuples"):
        ScoreHessian(model, cross_entropy, take(batches))


def test_samples_are_counted_by_the_first_tensor_that_has_rows():
    rows = torch.zeros(7, 2)
    assert [samples_in(b) for b in ((rows,), {"scale": torch.tensor(1.0), "x": {"ids": rows}}, [["a"], rows])] == [
        7
    ] * 3
    with pytest.raises(InputError, match="no tensor"):
        samples_in(({"a": 1},))


def test_a_residual_above_a_tenth_is_warned_of_where_it_was_asked_for():
    from s2ap_diag import PowerIteration  # beside what it is about

    model, batches = network()
    hessian = ScoreHessian(model, cross_entropy, batches)
    with pytest.warns(UserWarning, match=r"lambda_max has not converged, its residual is \d") as caught:
        reading = lambda_max(hessian, PowerIteration(1))
    assert reading.residual > 0.1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lambda_max(hessian).residual <= 0.1
