"""Symmetric operators that are known by their products alone, and the vectors that one begins with."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.seeds import generator


class SymmetricOperator(Protocol):
    """A symmetric matrix [n, n] by its products; ``matvec`` maps a vector [n] to a vector [n]."""

    n: int
    dtype: torch.dtype
    device: torch.device

    def matvec(self, v: Tensor) -> Tensor: ...


class Projected:
    """The rows and columns of an operator at some of its coordinates: P'HP, symmetric, [n, n].

    Args:
        op: H, an operator of ``m`` coordinates; it makes the products.
        onto: boolean [m], the coordinates that stay.

    >>> from types import SimpleNamespace
    >>> a = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    >>> op = SimpleNamespace(n=3, dtype=a.dtype, device=a.device, matvec=lambda v: a @ v)
    >>> Projected(op, torch.tensor([True, False, True])).matvec(torch.tensor([1.0, 0.0]))
    tensor([1., 3.])
    """

    def __init__(self, op: SymmetricOperator, onto: Tensor) -> None:
        self.op = op
        # Where all stay, copies of long vectors would be a tenth of a product's time.
        self.index = None if bool(onto.all()) else onto.nonzero().squeeze(1)
        self.n = op.n if self.index is None else len(self.index)
        self.dtype, self.device = op.dtype, op.device

    def restrict(self, v: Tensor) -> Tensor:
        """Compute P'v: of a vector [m] the entries that stay, [n]; v itself where all do."""
        return v if self.index is None else v[self.index]

    def expand(self, v: Tensor) -> Tensor:
        """Compute Pv: a vector [n] with 0 in the other places, [m]; v itself where all stay."""
        return v if self.index is None else v.new_zeros(self.op.n).index_copy_(0, self.index, v)

    def matvec(self, v: Tensor) -> Tensor:
        """Compute P'HPv for a vector [n], at one product of H."""
        return self.restrict(self.op.matvec(self.expand(v)))


def finite_product(op: SymmetricOperator, v: Tensor) -> Tensor:
    """Compute Hv for a vector [n].

    Raises:
        InputError: if an entry is NaN or infinite.
    """
    product = op.matvec(v)
    if not product.isfinite().all():
        raise InputError("a Hessian-vector product is not finite: scores, weights or batches are out of range")
    return product


def normal_vector(op: SymmetricOperator, seed: int, purpose: str) -> Tensor:
    """Draw a vector [n] from the standard normal distribution."""
    rng = generator(op.device, seed, purpose)
    return torch.randn(op.n, generator=rng, dtype=op.dtype, device=op.device)


def sign_vectors(op: SymmetricOperator, count: int, seed: int, purpose: str) -> Iterator[Tensor]:
    """Draw ``count`` vectors [n] of random signs."""
    rng = generator(op.device, seed, purpose)
    for _ in range(count):
        bits = torch.randint(0, 2, (op.n,), generator=rng, device=op.device)
        yield bits.to(op.dtype).mul_(2).sub_(1)


def check_counts(**counts: int) -> None:
    """Refuse what makes no step, by its name.

    Raises:
        InputError: if a count is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} = {count}: give at least 1")
