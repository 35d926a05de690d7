"""The Hessian of the robust loss in the scores, as a matrix-free operator.

What is differentiated is the straight-through surrogate. The mask M(s, k) itself is piecewise constant
in s, so that the loss has no useful derivatives; the search replaces the derivative of the mask by 1,
and so does this operator: with H the Hessian of the loss in the masked weights,

    H_s = diag(w · sign(s)) H diag(w · sign(s)),

whose spectrum is that of diag(w) H diag(w) (the signs come from the mask ranking |s|). H_s therefore
sees the scores only through the mask that they select: rescaling a layer's scores changes nothing. Rows
of pruned weights are not zero, and rows of scores that are exactly 0 are. HARP's rates are held fixed,
and so are the adversarial examples, which are part of the batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_core import distributed
from s2ap_core.errors import InputError
from s2ap_core.masks.layers import one_mask, score_masks
from s2ap_core.masks.parametrization import ScoreMask
from s2ap_core.modes import frozen_statistics, gpu_arithmetic, train_mode
from s2ap_core.seeds import generator
from s2ap_diag.curvature.batches import held, shares_of
from s2ap_diag.curvature.memory import LiveBytes

BatchNormMode = Literal["running", "batch"]


Loss = Callable[[nn.Module, Any], Tensor]


@contextmanager
def batch_norm_mode(model: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """Set evaluation mode, with BatchNorm normalising by its running statistics or by the batch's.

    ``batch`` is what the search minimises, ``running`` what is deployed; the two can move in opposite
    directions. The running statistics stay as they are, and each module gets its own mode back.

    Raises:
        InputError: if ``mode`` is neither ``running`` nor ``batch``.
    """
    _check_batch_norm(mode)
    from_batch = mode == "batch"
    with train_mode(model, False), frozen_statistics(model) if from_batch else nullcontext():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.train(from_batch)
        yield


def _check_batch_norm(mode: str) -> None:
    if mode not in get_args(BatchNormMode):
        raise InputError(f"batch_norm = {mode!r}: choose running or batch")


def chosen_masks(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, ScoreMask]:
    """Return the score masks of the named layers, in the order named; all of them for None.

    Raises:
        InputError: if the model has no scores, or none in a layer of that name.
    """
    masks = score_masks(model)
    if not masks:
        raise InputError("the network has no scores: give a checkpoint of the search, or attach masks")
    for name in layers or ():
        if name not in masks:
            raise InputError(f"layer {name!r} has no scores; the first that has is {next(iter(masks))!r}")
    return masks if layers is None else {name: masks[name] for name in layers}


@contextmanager
def scores_at(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[list[nn.Parameter]]:
    """Put fresh leaves with these values in place of the scores of these layers.

    Nothing else of the model requires a gradient in the block. The scores themselves, their ``.grad``
    and every ``requires_grad`` are untouched afterwards, whatever happened in the block.
    """
    masks = chosen_masks(model, list(values))
    own = {name: mask.scores for name, mask in masks.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for name, mask in masks.items():
            mask.scores = nn.Parameter(values[name].detach())
        yield [mask.scores for mask in masks.values()]
    finally:
        for name, mask in masks.items():
            mask.scores = own[name]
        for parameter in trained:
            parameter.requires_grad_(True)


def finite_loss(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Compute ``loss(model, batch)`` with every mask selected once.

    Raises:
        InputError: if it is NaN or infinite.
    """
    with one_mask(model):
        value = loss(model, batch)
    if not value.isfinite():
        raise InputError(f"the loss is {value.item()}: scores, weights or batch hold values out of range")
    return value


def score_gradient(
    value: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False, allow_unused: bool = False
) -> list[Tensor]:
    """Compute the gradient of ``value`` in each leaf; zero where it does not depend on that leaf.

    Raises:
        InputError: if it depends on no leaf at all, unless ``allow_unused``.
    """
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        gradients = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    if not allow_unused and all(gradient is None for gradient in gradients):
        raise InputError(
            "the loss does not depend on the scores: it must run the model it is given, and measuring must "
            "not happen within one_mask or constant_mask"
        )
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Join all entries to one vector [n], row-major per tensor whatever the memory layout."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Invert :func:`flatten`: views of ``vector`` [n] in the shapes of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


KEPT_GRAPHS = 2 << 30
"""Bytes that the graphs of several batches may hold together."""

_Graph = tuple[list[nn.Parameter], list[Tensor]]
"""Leaves that stand for the scores, and the gradient in them, differentiable."""


class ScoreHessian:
    """The Hessian of the mean loss over ``batches`` in the scores of ``layers``; symmetric, [n, n].

    Products are exact, by differentiating twice. The graph of each batch's gradient is built at the first
    product and kept for all that follow, until :meth:`close` or the end of a ``with`` block; the model must
    not change in between. Several graphs that would together hold more than ``KEPT_GRAPHS`` bytes are
    built anew for each product, at the cost of another gradient, and freed at once. The loss may be any
    function of the model that is a mean over samples.

    Args:
        loss: ``loss(model, batch) -> scalar``, the mean over the batch's samples.
        batches: as :func:`s2ap_diag.curvature.batches.held` takes them: a list of tuples or dicts of tensors, the first
            with the batch dimension, a DataLoader or a generator; weighted by sample count.
        batch_norm: statistics that BatchNorm normalises with, see :func:`batch_norm_mode`.
        layers: names of masked layers; those of all scores by default. One layer gives its diagonal block.
        weights: of each batch in the mean, where the processes of a run hold a part of it each: a process
            may hold no batch or an empty one, the weights of all add up to 1, and products are summed over them.
            By default the batches are all there are, here or in whichever process asks.

    Raises:
        InputError: if there is no batch, one that is none, no such layer, or no such ``batch_norm``; in a product, if
            the loss is not finite or does not depend on the scores.

    Attributes:
        hvps: Hessian-vector products made so far, each over one batch.
        quotients: v'H_b v, a scalar for each batch b that is here, of the last product's v.

    >>> from s2ap_core.masks.masking import attach
    >>> model, x = attach(nn.Linear(2, 1, bias=False).double(), keep=0.5), torch.eye(2).double()
    >>> model.parametrizations.weight.original.data = torch.tensor([[2.0, 3.0]]).double()
    >>> with ScoreHessian(model, lambda m, b: m(b[0]).square().mean(), [(x,)]) as hessian:
    ...     hessian.matvec(torch.ones(2).double()).abs()  # diag(w) X'X diag(w) 2/n, up to signs
    tensor([4., 9.], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        *,
        batch_norm: BatchNormMode = "running",
        layers: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        batches = held(batches)
        if not batches and weights is None:
            raise InputError("no batch to measure on: give at least one")
        _check_batch_norm(batch_norm)
        self.model, self.loss, self.batches, self.batch_norm = model, loss, batches, batch_norm
        self.scores = {name: mask.scores for name, mask in chosen_masks(model, layers).items()}
        if not self.scores:
            raise InputError("layers is empty: name at least one")
        self.n = sum(scores.numel() for scores in self.scores.values())
        first = next(iter(self.scores.values()))
        self.dtype, self.device = first.dtype, first.device
        self.weights = weights
        self.hvps = 0
        self.quotients: list[Tensor] = []
        self._graphs: list[_Graph] = []
        self._keeps_graphs: bool | None = True if len(batches) <= 1 else None  # of several, the first tells

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs that are kept between products; a later product builds them again."""
        self._graphs = []

    @contextmanager
    def surrogate(self) -> Iterator[tuple[list[nn.Parameter], Callable[..., Tensor]]]:
        """Give what is differentiated: leaves that stand for the scores, and the loss of a batch at them, weighted."""

        def loss_of(batch: Any, weight: float = 1.0) -> Tensor:
            return finite_loss(self.model, lambda *given: distributed.term(self.loss(*given), weight), batch)

        with (
            torch.enable_grad(),
            gpu_arithmetic(tf32=False),
            batch_norm_mode(self.model, self.batch_norm),
            scores_at(self.model, self.scores) as leaves,
            sdpa_kernel(SDPBackend.MATH),  # the fused attention kernels cannot be differentiated twice
        ):
            yield leaves, loss_of

    def matvec(self, v: Tensor) -> Tensor:
        """Compute H v for a vector [n] of the operator's dtype and device."""
        self.hvps += len(self.batches)
        with gpu_arithmetic(tf32=False):
            product = self._own_product(v)
        return product if self.weights is None else distributed.add_up([product])[0]

    def _own_product(self, v: Tensor) -> Tensor:
        weights = shares_of(self.batches) if self.weights is None else self.weights
        if self._keeps_graphs is None:
            self._keeps_graphs = self._graphs_fit(weights)
        if self._keeps_graphs:
            self._graphs += [self._gradient_graph(i, weights) for i in range(len(self._graphs), len(weights))]
        total, self.quotients = torch.zeros_like(v), []
        for i, weight in enumerate(weights):
            graph = self._graphs[i] if self._keeps_graphs else self._gradient_graph(i, weights)
            product = _product(*graph, v, keep_graph=self._keeps_graphs)
            # Of a batch without weight, which may be an empty one, the product is 0, and so is its quotient.
            of_batch = _before(i, weights) or 1.0
            self.quotients.append(v @ product / of_batch)
            total.add_(product, alpha=weight / of_batch)
        return total

    def _graphs_fit(self, weights: Sequence[float]) -> bool:
        """Say by the first of several graphs whether all may be kept; it is kept if they may."""
        with LiveBytes() as live:
            first = self._gradient_graph(0, weights)
        fit: bool = live.now * len(weights) <= KEPT_GRAPHS
        self._graphs = [first] if fit else []
        return fit

    def _gradient_graph(self, index: int, weights: Sequence[float]) -> _Graph:
        part = len(self.scores) < len(score_masks(self.model))  # a layer may well be out of use
        with self.surrogate() as (leaves, loss_of):
            loss = loss_of(self.batches[index], _before(index, weights))
            return leaves, score_gradient(loss, leaves, create_graph=True, allow_unused=part)

    def restricted(self, layers: Sequence[str]) -> "ScoreHessian":
        """Return the diagonal block of these layers, as an operator of its own."""
        options: dict[str, Any] = {"batch_norm": self.batch_norm, "weights": self.weights}
        return ScoreHessian(self.model, self.loss, self.batches, layers=layers, **options)

    def symmetry_defect(self, seed: int = 0) -> float:
        """Compute ``|u'Hv - v'Hu| / (|u||Hv| + |v||Hu|)`` for two normal draws u, v; at two products.

        0 in exact arithmetic, of the order of the dtype's rounding error in practice; more than that
        means that the loss is not the same function each time it is evaluated (dropout, a random attack).
        Each of the two products has a graph of its own: one that is kept would hide it.
        """
        rng = generator(self.device, seed, "symmetry")
        u, v = torch.randn(2, self.n, generator=rng, dtype=self.dtype, device=self.device)
        self.close()
        hu = self.matvec(u)
        self.close()
        hv = self.matvec(v)
        scale = float(u.norm() * hv.norm() + v.norm() * hu.norm())
        return abs(float(u @ hv) - float(v @ hu)) / scale if scale else 0.0

    def as_linear_operator(self) -> LinearOperator:
        """Wrap it as a ``scipy.sparse.linalg.LinearOperator`` of NumPy vectors, for eigsh and its like."""

        def matvec(v: np.ndarray) -> np.ndarray:
            vector = torch.from_numpy(np.ascontiguousarray(v.reshape(-1), dtype=dtype)).to(self.device)
            return self.matvec(vector).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.n, self.n), matvec=matvec, rmatvec=matvec, dtype=dtype)


def _before(index: int, weights: Sequence[float]) -> float:
    """Give what a batch's loss is weighted by before it is differentiated; its product gets what is left to its weight.

    A single batch has all of its weight there: BatchNorm may make it depend on the other processes' images.
    """
    return weights[index] if len(weights) == 1 else float(weights[index] > 0)


def _product(leaves: list[nn.Parameter], gradient: list[Tensor], v: Tensor, *, keep_graph: bool) -> Tensor:
    # A layer that the loss does not use has no graph, and rows of zeros.
    pairs = [(g, part) for g, part in zip(gradient, unflatten(v, leaves), strict=True) if g.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    outputs, weights = zip(*pairs, strict=True)
    try:
        products = torch.autograd.grad(
            outputs, leaves, weights, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        if "derivative" not in str(error) or "not implemented" not in str(error):
            raise
        raise InputError(f"the loss or the network has no second derivative: {error}; write it otherwise") from error
    return flatten(products)
