"""PyHessian as a solver against PyHessian run by hand."""

import gc
import os

import psutil
import pytest
import torch
from pyhessian import hessian as Peer
from torch import nn

from s2ap_core.errors import InputError
from s2ap_core.masks.masking import attach, scores
from s2ap_diag.curvature.curvature import curvature
from s2ap_diag.curvature.eigen import lambda_max
from s2ap_diag.curvature.hessian import ScoreHessian
from s2ap_diag.curvature.pyhessian import PyHessian
from tests.spectra import cross_entropy, network, with_eigenvalues


def test_pyhessian_run_by_hand_and_as_a_solver_agree_with_lanczos() -> None:
    model, batches = network()
    ours = curvature(model, cross_entropy, batches[:1])
    wrapped = curvature(model, cross_entropy, batches[:1], solver=PyHessian(2000, tolerance=1e-7))
    model.requires_grad_(False)
    for s in scores(model).values():
        s.requires_grad_(True)
    torch.manual_seed(0)
    by_hand, _ = Peer(model, nn.CrossEntropyLoss(), data=batches[0], cuda=False).eigenvalues(2000, 1e-7)
    assert ours.dominant_eigenvalue == pytest.approx(by_hand[0], rel=1e-3)
    assert wrapped.dominant_eigenvalue == pytest.approx(by_hand[0], rel=1e-3)
    assert wrapped.lambda_max == pytest.approx(ours.lambda_max, rel=1e-3)


def test_pyhessian_agrees_over_several_batches_and_in_the_batch_s_statistics() -> None:
    model, batches = network()
    for mode in ("running", "batch"):
        ours = curvature(model, cross_entropy, batches, batch_norm=mode)
        peer = PyHessian(2000, tolerance=1e-7)
        theirs = curvature(model, cross_entropy, batches, solver=peer, batch_norm=mode)
        assert theirs.lambda_max == pytest.approx(ours.lambda_max, rel=1e-3)


def test_the_solver_frees_the_graphs_that_pyhessian_leaks() -> None:
    model = attach(nn.Sequential(nn.Linear(36, 256), nn.ReLU(), nn.Linear(256, 3)), keep=0.5)
    batch = (torch.randn(1000, 36), torch.arange(1000) % 3)

    def use(times: int) -> int:
        for _ in range(times):
            with ScoreHessian(model, cross_entropy, [batch]) as op:
                lambda_max(op, PyHessian(iterations=1))
        return psutil.Process(os.getpid()).memory_info().rss

    gc.disable()
    try:
        before = use(20)
        assert use(100) - before < 30e6
    finally:
        gc.enable()


def test_it_measures_a_network_alone() -> None:
    with pytest.raises(InputError, match="measures a ScoreHessian alone"):
        lambda_max(with_eigenvalues([1.0, 2.0]), PyHessian())
