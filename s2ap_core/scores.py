"""Top-k straight-through masks, as parametrizations of a layer's weight.

A masked layer computes with ``w * M(s, k)``: the mask M keeps the entries of largest ``|s|`` (Eq. 3 of
the paper). Any ``nn.Module`` with Conv2d or Linear layers can be masked; its classes and its forward
pass stay as they are.

>>> import torch
>>> from torch import nn
>>> layer = attach(nn.Linear(4, 2, bias=False), keep=0.25)
>>> masks(layer)["weight"].sum().item()
2
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s2ap_core.errors import InputError

MASKABLE = (nn.Conv2d, nn.Linear)


def n_dropped(numel: int, keep: float) -> int:
    """Number of entries that a keep rate drops: ``int((1 - keep) * numel)``, as HYDRA and HARP count."""
    return int((1 - keep) * numel)


def topk_mask(magnitude: Tensor, n_keep: int) -> Tensor:
    """Mark the ``n_keep`` largest entries with 1, all others with 0.

    Ties at the threshold are broken as a stable ascending sort would: of equal entries the last ones
    in row-major order stay. Exactly ``n_keep`` entries are kept, whatever the memory layout.

    Args:
        magnitude: any shape and layout, no gradient needed.
        n_keep: 0 to ``magnitude.numel()``.

    Returns:
        Tensor of 0 and 1 with the shape, layout and dtype of ``magnitude``.

    Raises:
        InputError: if ``magnitude`` holds NaN, for which no order exists.
    """
    n = magnitude.numel()
    if n_keep in (0, n):
        if magnitude.isnan().any():
            raise InputError("scores hold NaN: no top-k exists; restore an earlier epoch")
        return torch.full_like(magnitude, float(n_keep == n))
    if magnitude.device.type != "cpu":
        return _topk_mask_on_device(magnitude, n_keep)
    values = magnitude.detach().numpy()
    # The threshold does not depend on the order of the entries, so memory order spares a copy.
    threshold = np.partition(values.ravel(order="K"), n - n_keep)[n - n_keep]
    kept = values >= threshold
    surplus = int(np.count_nonzero(kept)) - n_keep
    if surplus < 0 or (surplus > 0 and np.isnan(values).any()) or np.isnan(values.max()):
        raise InputError("scores hold NaN: no top-k exists; restore an earlier epoch")
    if surplus:
        first_ties = np.argwhere(values == threshold)[:surplus]
        kept[tuple(first_ties.T)] = False
    return torch.from_numpy(kept).to(magnitude.dtype)


def _topk_mask_on_device(magnitude: Tensor, n_keep: int | Tensor) -> Tensor:
    """The same selection without a host synchronisation: ties are counted on the device.

    Args:
        n_keep: a number, or an integer scalar on the device, as HARP's learned rates give it.
    """
    flat = magnitude.detach().reshape(-1)
    n = flat.numel()
    ascending = flat.sort().values
    if isinstance(n_keep, Tensor):
        threshold = ascending.gather(0, (n - n_keep).clamp(0, n - 1).view(1))
    else:
        threshold = ascending[n - n_keep]
    above, tied = flat > threshold, flat == threshold
    ties_after = tied.sum() - tied.cumsum(0)
    kept = above | (tied & (ties_after < n_keep - above.sum()))
    mask = torch.empty_like(magnitude)  # keeps the layout of the scores
    # Nothing can be raised without a synchronisation: NaN scores make the mask, and so the loss, NaN.
    return mask.copy_(kept.view(magnitude.shape)).add_(flat.sum() * 0)


class _StraightThroughTopK(torch.autograd.Function):
    """M(|s|, k) forward; backward the identity to |s|, and to k the sum of the mask's gradient (HARP)."""

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, keep: Tensor | None, n_keep: int | Tensor) -> Tensor:
        if isinstance(n_keep, Tensor):
            return _topk_mask_on_device(magnitude, n_keep)
        return topk_mask(magnitude, n_keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad, grad.sum() if ctx.needs_input_grad[1] else None, None


class ScoreMask(nn.Module):
    """Parametrization ``w -> w * M(s, k)`` with one score per weight.

    Args:
        scores: importance scores, of the weight's shape or broadcastable to it.
        keep: fraction k of the scores that is kept, in (0, 1].
        rate: HARP's scalar rate r; then ``k = keep_min + (1 - keep_min) * sigmoid(r)`` is learned.
        keep_min: lower end of that interval.
    """

    def __init__(self, scores: Tensor, keep: float, rate: nn.Parameter | None = None, keep_min: float = 0.0) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self._keep = keep
        self.keep_min = keep_min
        self.rate: nn.Parameter | None
        self.register_parameter("rate", rate)

    def keep_rate(self) -> Tensor | None:
        """HARP's differentiable k, a float64 scalar; None where k is fixed."""
        if self.rate is None:
            return None
        return self.keep_min + (1 - self.keep_min) * self.rate.double().sigmoid()

    @property
    def keep(self) -> float:
        """The keep rate in force."""
        rate = self.keep_rate()
        return self._keep if rate is None else float(rate.detach())

    @property
    def n_keep(self) -> int:
        """Number of scores kept."""
        return self.scores.numel() - n_dropped(self.scores.numel(), self.keep)

    def _count(self) -> int | Tensor:
        """Number of scores kept: where a rate is learned on a GPU, a scalar there, since reading it would wait."""
        rate = self.keep_rate()
        if rate is None or not rate.is_cuda:
            return self.n_keep
        numel = self.scores.numel()
        return numel - ((1 - rate.detach()) * numel).long()

    def mask(self) -> Tensor:
        """The binary mask, of the scores' shape, with its straight-through gradient."""
        return _StraightThroughTopK.apply(self.scores.abs(), self.keep_rate(), self._count())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask()


class ChannelMask(ScoreMask):
    """Parametrization ``w -> w * M(s, k)`` with one score per input channel of the layer.

    ``round(k * C)`` of the C channels stay, at least one. What a checkpoint needs in order to build the
    mask again are buffers of it.

    Args:
        scores: [1, C, 1, 1] for a Conv2d, [1, C] for a Linear.
        keep: fraction k of the channels that is kept, in (0, 1]; with ``rate``, the target that ``keep_min``
            belongs to.
        group: number of the tensor that the layer reads; layers with the same one share their rate.
        rate, keep_min: as for :class:`ScoreMask`.
    """

    nominal_keep: Tensor
    group: Tensor

    def __init__(
        self, scores: Tensor, keep: float, group: int, rate: nn.Parameter | None = None, keep_min: float = 0.0
    ) -> None:
        super().__init__(scores, keep, rate, keep_min)
        self.register_buffer("nominal_keep", torch.tensor(keep, dtype=torch.float64))
        self.register_buffer("group", torch.tensor(group))

    @property
    def keep(self) -> float:
        """The keep rate in force."""
        return float(self.nominal_keep) if self.rate is None else super().keep

    @property
    def n_keep(self) -> int:
        """Number of channels kept."""
        return self.count(self.keep)

    def _count(self) -> int:
        return self.n_keep

    def count(self, keep: float) -> int:
        """Number of channels that a keep rate keeps."""
        return max(1, round(keep * self.scores.numel()))


class FixedMask(nn.Module):
    """Parametrization ``w -> w * m`` with a mask that stays, as in finetuning."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask_bits: Tensor
        self.register_buffer("mask_bits", mask.bool())

    def mask(self) -> Tensor:
        """The mask, boolean, of the weight's shape."""
        return self.mask_bits

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask_bits


Mask = ScoreMask | FixedMask


def _restore_masked(cls: type[nn.Module], state: dict[str, Any], mask: Mask) -> nn.Module:
    module = cls.__new__(cls)
    module.__dict__.update(state)
    return _register(module, mask)


def _reduce_masked(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    """How a masked layer is pickled and deep-copied: as its plain layer and its mask, joined again.

    torch refuses to pickle a parametrized layer, and its deepcopy shares one class between the copies,
    so that removing the mask from one of them would break the other.
    """
    state = module.__dict__.copy()
    state["_modules"] = {k: v for k, v in module._modules.items() if k != "parametrizations"}
    state["_parameters"] = {**module._parameters, "weight": module.parametrizations.weight.original}  # type: ignore[union-attr]
    return _restore_masked, (type(module).__mro__[1], state, mask_of(module))


def _register(layer: nn.Module, mask: Mask) -> nn.Module:
    # unsafe=True skips torch's trial run of the parametrization, a selection per layer.
    parametrize.register_parametrization(layer, "weight", mask, unsafe=True)
    if "__deepcopy__" in vars(type(layer)):
        del type(layer).__deepcopy__  # type: ignore[attr-defined]
    type(layer).__reduce_ex__ = _reduce_masked  # type: ignore[assignment, method-assign]
    return layer


def mask_of(layer: nn.Module) -> Mask:
    """The mask of one masked layer."""
    mask: Mask = layer.parametrizations.weight[0]  # type: ignore[union-attr, index, assignment]
    return mask


def is_masked(layer: nn.Module) -> bool:
    """Whether this layer itself carries a mask of ours."""
    return (
        isinstance(layer, MASKABLE)
        and parametrize.is_parametrized(layer, "weight")
        and isinstance(mask_of(layer), ScoreMask | FixedMask)
    )


def maskable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every Conv2d and Linear by name, except those that the network declares in ``dense_layers``."""
    dense = getattr(model, "dense_layers", ())
    return {n: m for n, m in model.named_modules() if isinstance(m, MASKABLE) and n not in dense}


def masked_layers(model: nn.Module) -> dict[str, Mask]:
    """The mask of every masked layer, by layer name, in the network's order."""
    return {name: mask_of(layer) for name, layer in model.named_modules() if is_masked(layer)}


def score_masks(model: nn.Module) -> dict[str, ScoreMask]:
    """As :func:`masked_layers`, those with scores alone."""
    return {name: mask for name, mask in masked_layers(model).items() if isinstance(mask, ScoreMask)}


def attach_masks(
    model: nn.Module, make: Callable[[str, nn.Module], Mask], only: Container[str] | None = None
) -> nn.Module:
    """Mask ``model`` in place: each maskable layer (or those in ``only``) with ``make(name, layer)``.

    Raises:
        InputError: if a layer is masked already, or if there is nothing to mask.
    """
    layers = {n: layer for n, layer in maskable_layers(model).items() if only is None or n in only}
    if not layers:
        raise InputError("the network has no Conv2d or Linear layer to mask")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight"):
            raise InputError(f"layer {name or '(root)'} is masked already: bake the masks first")
    made = {name: make(name, layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        _register(layer, made[name])
    return model


def attach(model: nn.Module, keep: float) -> nn.Module:
    """Mask ``model`` in place with HYDRA's initial scores, keep rate ``keep`` in every layer.

    Raises:
        InputError: if ``keep`` is not in (0, 1], or a layer is masked already.
    """
    check_keep(keep)
    return attach_masks(model, lambda name, layer: ScoreMask(scaled_scores(layer.weight), keep))  # type: ignore[arg-type]


def check_keep(keep: float) -> None:
    """Raise InputError unless ``keep`` lies in (0, 1]."""
    if not 0 < keep <= 1:  # also false for NaN
        raise InputError(f"keep = {keep}: the fraction of weights kept must lie in (0, 1]")


def scaled_scores(weight: Tensor) -> Tensor:
    """Scores of HYDRA and HARP at the start: ``sqrt(6 / fan_in) * w / max|w|``, of the weight's shape."""
    fan_in = weight[0].numel()
    largest = weight.detach().abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    return (6 / fan_in) ** 0.5 * weight.detach() / largest


def dead_channels(bits: Tensor) -> Tensor:
    """Which output channels (rows) of a layer's mask [C_out, ...] keep no weight: boolean [C_out]."""
    return ~bits.bool().flatten(1).any(1)


@torch.no_grad()
def masks(model: nn.Module) -> dict[str, Tensor]:
    """The boolean mask of every masked layer, by weight name (``conv1.weight``), of the weight's shape."""
    found = {}
    for name, layer in model.named_modules():
        if is_masked(layer):
            bits = mask_of(layer).mask().bool()
            found[f"{name}.weight".removeprefix(".")] = bits.expand(layer.parametrizations.weight.original.shape)
    return found


def scores(model: nn.Module) -> dict[str, nn.Parameter]:
    """The score tensor of every masked layer, by score name (``conv1.scores``)."""
    return {f"{name}.scores".removeprefix("."): mask.scores for name, mask in score_masks(model).items()}


def density(model: nn.Module) -> float:
    """Kept weights over maskable weights, in [0, 1]."""
    found = masks(model)
    return sum(int(m.sum()) for m in found.values()) / sum(m.numel() for m in found.values())


@contextmanager
def one_mask(model: nn.Module) -> Iterator[None]:
    """Select every mask once for all forward passes in the block, which share one graph.

    Neither the scores nor the weights may change in the block, and it takes one backward pass.
    """
    del model  # torch keeps one cache for all parametrized modules
    with parametrize.cached():
        yield


@contextmanager
def constant_mask(model: nn.Module) -> Iterator[None]:
    """Select every mask once and hold the masked weights as constants: for attacks and evaluation.

    Nothing in the block is differentiable in scores or masked weights; inputs are.
    """
    with parametrize.cached():
        with torch.no_grad():
            for layer in model.modules():
                if is_masked(layer):
                    _ = layer.weight  # fills the cache
        yield


def fix_masks(model: nn.Module) -> nn.Module:
    """Replace, in place, each score mask by the fixed mask it selects; pruned weights become zero."""
    current = masks(model)
    for name, layer in list(model.named_modules()):
        if is_masked(layer):
            bits = current[f"{name}.weight".removeprefix(".")]
            unmask(layer)
            layer.weight.requires_grad_(True)
            _register(layer, FixedMask(bits.clone()))
    return model


def unmask(layer: nn.Module) -> None:
    """Turn one masked layer, in place, into a plain one that holds ``w * m``."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def bake(model: nn.Module) -> nn.Module:
    """A plain copy of ``model`` whose weights are ``w * m``; without masks, a plain copy."""
    import copy

    plain = copy.deepcopy(model)
    for layer in list(plain.modules()):
        if is_masked(layer):
            unmask(layer)
    return plain


_PLAIN = {
    "original": "weight",
    "0.scores": "scores",
    "0.rate": "rate",
    "0.nominal_keep": "keep",
    "0.group": "group",
    "0.mask_bits": "mask",
}
_PARAMETRIZED = re.compile(rf"parametrizations\.weight\.({'|'.join(map(re.escape, _PLAIN))})$")


def _plain_name(key: str) -> str:
    return _PARAMETRIZED.sub(lambda match: _PLAIN[match[1]], key)


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under plain names: ``conv1.weight``, ``.scores``, ``.rate``, ``.mask``.

    Channel masks also have ``.keep`` and ``.group``. Tensors share the model's memory, but for tied rates,
    which are one tensor in the model and one for each layer here: files hold no shared tensors.
    """
    state = {_plain_name(key): tensor for key, tensor in model.state_dict().items()}
    return {name: tensor.clone() if name.endswith(".rate") else tensor for name, tensor in state.items()}


def load_plain_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`plain_state_dict` gave into a model that is masked in the same way.

    Raises:
        InputError: naming the first tensors that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    names = {_plain_name(key): key for key in own}
    missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    shapes = [n for n in names.keys() & state.keys() if own[names[n]].shape != state[n].shape]
    for what, bad in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has another shape for", sorted(shapes)),
    ):
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise InputError(f"not a checkpoint of this network: it {what} {bad[0]}{more}")
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})
