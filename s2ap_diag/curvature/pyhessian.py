"""PyHessian as a solver: the package that the paper's kind of reading is usually made by, on the same operator."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from s2ap_core import distributed
from s2ap_core.errors import InputError
from s2ap_core.seeds import derive_seed
from s2ap_diag.curvature.batches import samples_in
from s2ap_diag.curvature.eigen import CONVERGED, Eigenpair, LambdaMax, Solver, largest_by_shift, relative
from s2ap_diag.curvature.hessian import ScoreHessian, flatten, unflatten
from s2ap_diag.curvature.operators import Projected, SymmetricOperator, finite_product


@dataclass(frozen=True)
class PyHessian(Solver):
    """The PyHessian package's power iteration, of a ScoreHessian and its :class:`Projected` alone.

    Where the dominant eigenvalue is negative it goes on with H - lambda I.

    Attributes:
        tolerance: on the relative change of the value between two iterations; None makes all of them.
    """

    name: ClassVar[str] = "pyhessian"
    ends_on_vector: ClassVar[bool] = True
    iterations: int = 100
    tolerance: float | None = 1e-4

    def solve(self, op: SymmetricOperator, *, seed: int = 0) -> LambdaMax:
        """Find the dominant eigenvalue, and another one if it is negative.

        Raises:
            InputError: if ``op`` is no ScoreHessian or spread over several processes, or a product is not finite.
        """
        hessian = op.op if isinstance(op, Projected) else op
        if not isinstance(hessian, ScoreHessian):
            raise InputError("pyhessian measures a ScoreHessian alone; choose lanczos or power")
        if hessian.weights is not None and distributed.world() > 1:
            raise InputError("pyhessian runs in one process; choose lanczos or power")
        return largest_by_shift(lambda shift: self._dominant(op, hessian, shift, seed))

    def _dominant(self, op: SymmetricOperator, hessian: ScoreHessian, shift: float, seed: int) -> Eigenpair:
        """Find the dominant eigenpair of H - shift I, by adding -shift/2 |s - s0|^2 to the loss."""
        calls = 0

        def criterion_of(loss_of: Callable[[Any], Tensor], leaves: list[nn.Parameter]) -> Callable[..., Tensor]:
            def criterion(_inputs: Tensor, index: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                squares = sum((leaf - leaf.detach()).square().sum() for leaf in leaves)
                return loss_of(hessian.batches[int(index)]) - 0.5 * shift * squares

            return criterion

        devices = [op.device] if op.device.type == "cuda" else []
        with hessian.surrogate() as (leaves, loss_of), torch.random.fork_rng(devices):
            torch.manual_seed(derive_seed(seed, "pyhessian"))  # PyHessian draws from the global generator
            if isinstance(op, Projected):
                _project_gradients(op, leaves)
            eigenvalue, vectors = self._run(hessian, leaves, criterion_of(loss_of, leaves))
        hessian.hvps += calls
        value = eigenvalue + shift
        vector = flatten(vectors)
        if isinstance(op, Projected):
            vector = op.restrict(vector)
        vector = vector / vector.norm()
        product = finite_product(op, vector)
        residual = relative(float((product - value * vector).norm()), value)
        return Eigenpair(value, vector, product, residual, residual <= CONVERGED, calls // len(hessian.batches) + 1)

    def _run(
        self, hessian: ScoreHessian, leaves: list[nn.Parameter], criterion: Callable[..., Tensor]
    ) -> tuple[float, list[Tensor]]:
        """Give PyHessian's eigenvalue and its eigenvector, in the shapes of the leaves."""
        # Imported here, since no other solver needs the package.
        from pyhessian import hessian as Peer

        # PyHessian weights batches by inputs.size(0), and as a list of batches frees each product's graph at once,
        # where its single-batch form keeps it for good.
        loader = [(torch.empty(samples_in(batch)), torch.tensor(i)) for i, batch in enumerate(hessian.batches)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
            peer = Peer(_ScoresAlone(leaves), criterion, dataloader=loader, cuda=hessian.device.type == "cuda")
            values, vectors = peer.eigenvalues(maxIter=self.iterations, tol=self.tolerance or 0.0)
        return values[0], vectors[0]


def _project_gradients(op: Projected, leaves: list[nn.Parameter]) -> None:
    """Project what PyHessian sees of the gradient in the leaves, and so of its derivative."""
    kept = unflatten(op.expand(torch.ones(op.n, dtype=op.dtype, device=op.device)), leaves)
    for leaf, part in zip(leaves, kept, strict=True):
        leaf.register_hook(lambda gradient, part=part: gradient * part)


class _ScoresAlone(nn.Module):
    """What PyHessian sees as the network: parameters that are the scores, and inputs passed through.

    PyHessian switches the whole network to evaluation mode and clears all its gradients. Here that
    touches nothing but this shell; the network itself is run by the criterion.
    """

    def __init__(self, leaves: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.leaves = nn.ParameterList(leaves)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs
