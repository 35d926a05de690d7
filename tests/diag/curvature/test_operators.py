"""Operators against dense matrices."""

import pytest
import torch

from s2ap_diag.curvature.eigen import PowerIteration, lambda_max
from s2ap_diag.curvature.operators import Projected
from tests.spectra import with_eigenvalues


def test_a_projected_operator_is_the_principal_submatrix() -> None:
    op = with_eigenvalues([-9.0, -4.0, -1.0, 2.0, 3.0, 6.0])
    onto = torch.tensor([True, False, True, True, False, True])
    block = Projected(op, onto)
    expected = op.entries[onto][:, onto]
    torch.testing.assert_close(torch.stack([block.matvec(e) for e in torch.eye(4).double()]), expected)
    assert (block.n, op.products) == (4, 4)
    v = torch.randn(4).double()
    assert torch.equal(block.restrict(block.expand(v)), v)
    assert block.expand(v)[~onto].count_nonzero() == 0
    # Zeros in the other places would add the eigenvalue 0, which none of a negative block's is.
    negative = Projected(with_eigenvalues([-9.0, -4.0, -3.0]), torch.tensor([True, True, False]))
    top = float(torch.linalg.eigvalsh(negative.op.entries[:2, :2])[-1])
    assert lambda_max(negative).lambda_max == pytest.approx(top, rel=1e-9)
    assert lambda_max(negative, PowerIteration(100)).lambda_max == pytest.approx(top, rel=1e-4)
    assert top < -1
