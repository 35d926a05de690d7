"""The Lanczos recurrence, which eigenvalues and their density are both read of."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from s2ap_diag.curvature.operators import SymmetricOperator, finite_product


@dataclass(frozen=True, eq=False)
class Krylov:
    """What m Lanczos steps know of an operator: the tridiagonal matrix T = basis H basis'.

    Attributes:
        alphas, betas: diagonal [m] and off-diagonal [m] of T; the last beta couples to basis vector m
            and is 0 when the Krylov space is exhausted.
        basis: orthonormal rows, of which m + 1 are filled.
    """

    alphas: list[float]
    betas: list[float]
    basis: Tensor

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the eigenvalues of T ascending [m], and its eigenvectors [m, m] in columns."""
        theta, vectors = eigh_tridiagonal(self.alphas, self.betas[:-1])
        return theta, vectors


def lanczos_steps(op: SymmetricOperator, start: Tensor, steps: int) -> Iterator[Krylov]:
    """Make Lanczos steps with full reorthogonalisation; yield after each of at most ``steps`` products.

    Holds ``steps`` + 1 vectors [n].

    Raises:
        InputError: if a product is not finite.
    """
    steps = min(steps, op.n)
    basis = torch.empty(steps + 1, op.n, dtype=op.dtype, device=op.device)
    start = start.detach()
    basis[0] = start / start.norm()
    krylov = Krylov([], [], basis)
    for m in range(1, steps + 1):
        w = finite_product(op, basis[m - 1])
        krylov.alphas.append(float(basis[m - 1] @ w))
        negligible = 10 * torch.finfo(op.dtype).eps * float(w.norm())
        w = w.detach().clone()
        for _ in range(2):  # once leaves rounding errors of the size of the cancellation, twice does not
            w.addmv_(basis[:m].T, basis[:m] @ w, alpha=-1)
        beta = float(w.norm())
        exhausted = m == op.n or beta <= negligible
        krylov.betas.append(0.0 if exhausted else beta)
        if not exhausted:
            torch.div(w, beta, out=basis[m])
        yield krylov
        if exhausted:
            return
