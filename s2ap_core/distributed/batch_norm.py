"""BatchNorm over the batch of all processes, or over each one's own images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_core.distributed.group import add_up, world
from s2ap_core.errors import InputError

Statistics = Literal["sync", "local"]


@contextmanager
def batch_statistics(model: nn.Module, mode: Statistics) -> Iterator[None]:
    """Let BatchNorm in train mode normalise, for the block, by what several processes see.

    Args:
        mode: ``sync`` takes mean and variance over all of them; ``local`` over each one's own images, and at
            the end of the block the running statistics become the mean of all processes'.

    Raises:
        InputError: if several processes work, and a BatchNorm is of a class of its own.
    """
    for name, module in model.named_modules() if world() > 1 else ():
        if isinstance(module, _BatchNorm) and not isinstance(module, (_Synced, _Local)) and type(module) not in _SYNCED:
            raise InputError(
                f"{name}: {type(module).__name__} is no BatchNorm that several processes can compute together; give "
                "nn.BatchNorm1d, 2d or 3d, or run one process"
            )
    norms = [m for m in model.modules() if type(m) in _SYNCED] if world() > 1 else []
    classes = _SYNCED if mode == "sync" else _LOCAL
    for norm in norms:
        norm.__class__ = classes[type(norm)]
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = single_process_class(norm)
    if mode == "local":
        tracked = [b for norm in norms for b in (norm.running_mean, norm.running_var) if isinstance(b, Tensor)]
        for buffer, total in zip(tracked, add_up(tracked) if tracked else (), strict=True):
            buffer.copy_(total / world())


def single_process_class(module: nn.Module) -> type:
    """Return the class that a module has outside :func:`batch_statistics`."""
    return type(module).__mro__[2] if isinstance(module, _Synced | _Local) else type(module)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is such a sum, too, and so is the second derivative."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        total: Tensor = _Sum.apply(grad)  # type: ignore[no-untyped-call]
        return total


class _Synced(_BatchNorm):
    """BatchNorm over the batch of all processes, by one all-reduce of sums.

    torch's SyncBatchNorm runs on GPUs alone, gives parts of unequal size equal weight, and has no second derivative.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        axes, channels = [0, *range(2, x.dim())], x.shape[1]
        # From the running mean, where no digits cancel between the sum of squares and the squared sum.
        origin = x.new_zeros(channels) if self.running_mean is None else self.running_mean.clone()
        centred = x - _per_channel(origin, x)
        images = centred.new_full((1,), x.numel() / channels)
        own = torch.cat([centred.sum(axes), centred.square().sum(axes), images])
        sums: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
        total, squares, count = sums.split([channels, channels, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        if self.track_running_stats and self.running_mean is not None:
            self._track(origin + mean.detach(), variance.detach() * (count / (count - 1).clamp_min(1)).detach())
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return torch.addcmul(_per_channel(shift, x), centred, _per_channel(scale, x))

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *(1,) * (x.dim() - 2))


class _Local(_BatchNorm):
    """BatchNorm over this process's images alone; by the running statistics where it has too few images."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() < 2 * x.shape[1] and self.running_mean is not None:
            if self.track_running_stats and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class _SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    pass


class _SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    pass


class _SyncedBatchNorm3d(_Synced, nn.BatchNorm3d):
    pass


class _LocalBatchNorm1d(_Local, nn.BatchNorm1d):
    pass


class _LocalBatchNorm2d(_Local, nn.BatchNorm2d):
    pass


class _LocalBatchNorm3d(_Local, nn.BatchNorm3d):
    pass


# The classes that a network's BatchNorm has while several processes train it; its own class is the second base.
_SYNCED: dict[type, type] = {
    nn.BatchNorm1d: _SyncedBatchNorm1d,
    nn.BatchNorm2d: _SyncedBatchNorm2d,
    nn.BatchNorm3d: _SyncedBatchNorm3d,
}


_LOCAL: dict[type, type] = {
    nn.BatchNorm1d: _LocalBatchNorm1d,
    nn.BatchNorm2d: _LocalBatchNorm2d,
    nn.BatchNorm3d: _LocalBatchNorm3d,
}
