"""One run on several processes: torchrun starts them, each takes its part of every batch.

Every process holds the whole model and the whole state of the run; alike they start, and alike they stay,
since whatever changes them is summed over all of them first. Each batch is the same as in one process, and
image i of it lies on process ``i mod world``; losses are parts of the batch's mean, so that sums over the
processes are the loss and the gradient of the whole batch, however unequal the parts. A process may well
have no image of a batch. The first process writes files, the others wait for them.

Without torchrun there is one process, and everything here is the identity.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_core.errors import InputError
from s2ap_core.seeds import derive_seed

T = TypeVar("T")

Statistics = Literal["sync", "local"]

TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others, which may be attacking a batch of the evaluation."""


@dataclass(frozen=True)
class _Group:
    rank: int = 0
    world: int = 1
    store: Any = None


_group = _Group()


def rank() -> int:
    """This process's number among all of the run's, from 0 on."""
    return _group.rank


def world() -> int:
    """Number of processes."""
    return _group.world


def processes_here() -> int:
    """Number of processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


def restarted() -> bool:
    """Whether torchrun has started this run again after a process ended."""
    # Of several machines, only those count it whose own processes ended.
    return any(gather(launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started for the block: NCCL between GPUs, gloo between CPUs."""
    global _group
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(_agree(store, number, count), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    _group = _Group(number, count, store)
    yield
    # Not after an exception: the others may wait for what this process will not send, and torchrun ends them.
    wait()
    _group = _Group()
    dist.destroy_process_group()


def _agree(store: Any, number: int, count: int) -> str:
    """A name for this start of the processes: torchrun's store keeps what those of an earlier start wrote.

    Whoever asks with a word of its own gets an answer that no earlier process can have been given.
    """
    word = uuid4().hex
    if number:
        store.set(f"ask/{number}", word)
        name = str(store.get(f"answer/{word}").decode())
        store.set(f"{name}/{number}", "here")
        return name
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    missing = set(range(1, count))
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"processes {sorted(missing)} did not join within {TIMEOUT}")
        for other in missing:
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", word)
        time.sleep(0.05)
        missing = {other for other in missing if not store.check([f"{word}/{other}"])}
    return word


def device_of(device: str) -> str:
    """The device of this process where a user asks for ``device``: with several processes, a GPU for each.

    Raises:
        InputError: if all of them would share one GPU.
    """
    if world() == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise InputError(f"--device {device}: each process takes a GPU of its own; give --device cuda")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def speaks_first() -> bool:
    """Whether no other process has asked this before: of an error that all of them meet, one tells."""
    try:
        return world() == 1 or _group.store.add("spoken", 1) == 1
    except dist.DistError:  # torchrun itself has ended
        return True


def lost_process(error: BaseException) -> bool:
    """Whether an exception means that another process has ended or does not answer."""
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def leave(status: int) -> NoReturn:
    """End this process with a status, at once.

    Threads of gloo that outlive an error, or are still on their way out, would abort the interpreter as it
    closes down, and with it the exit status that torchrun goes by.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait() -> None:
    """Wait until every process is here: what the first has written can then be read."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, by one all-reduce; bitwise the same in each of them."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def add_up_gradients(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum the loss and the gradients ``.grad`` over all processes, by one all-reduce; returns the loss."""
    differentiated = [p for p in parameters if p.grad is not None]
    total, *gradients = add_up([loss.detach(), *(p.grad for p in differentiated if p.grad is not None)])
    for parameter, gradient in zip(differentiated, gradients, strict=True):
        parameter.grad = gradient
    return total


def gather(value: T) -> list[T]:
    """What each process gives, by rank; anything that can be pickled."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def dealt(items: Sequence[T]) -> Sequence[T]:
    """The items that this process works on, such as whole batches: every world-th."""
    return items[rank() :: world()]


def collected(own: Sequence[T]) -> list[T]:
    """What all processes made of the items that they were :func:`dealt`, in the items' order."""
    hands = gather(list(own))
    return [hands[i % world()][i // world()] for i in range(sum(map(len, hands)))]


def from_first(function: Callable[[], T]) -> T:
    """What ``function`` returns in the first process, the only one to call it, for all of them.

    Raises:
        InputError: in all of them, if the function does.
    """
    if world() == 1:
        return function()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [function()]
        except InputError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], InputError):
        raise outcome[0]
    return outcome[0]


@dataclass(frozen=True)
class Share:
    """A process's part of a batch of ``count`` images: every ``world``-th, from its own number on.

    The first images of a batch are therefore spread over the processes as evenly as all of them.
    """

    count: int
    rank: int = 0
    world: int = 1

    @classmethod
    def own(cls, count: int) -> "Share":
        """This process's part."""
        return cls(count, rank(), world())

    def first(self, n: int) -> int:
        """How many of the batch's first ``n`` images are here; they are the first ones here, too."""
        return len(range(self.rank, n, self.world))

    def of_mean(self, mean: Tensor, n: int) -> Tensor:
        """This part's term of the mean over the batch's first ``n`` images; the terms of all add up to it.

        Args:
            mean: over those of them that are here; NaN and without effect where there are none.
        """
        return term(mean, self.first(n) / n)

    def generator(self, device: torch.device | str, seed: int, *parts: str | int) -> torch.Generator:
        """As :func:`s2ap_core.seeds.generator`; :func:`draw` draws this part of the whole batch's noise by it."""
        found = _BatchGenerator(device=device)
        found.share = self
        return found.manual_seed(derive_seed(seed, *parts))


def term(mean: Tensor, weight: float) -> Tensor:
    """What one process adds to a mean over all: ``weight * mean``; 0 where it has nothing to add, and no mean."""
    if weight == 1:
        return mean
    # 0, but still a function of the network: its BatchNorm waits for every process in the backward pass.
    return mean * weight if weight else mean.nan_to_num(0.0) * 0.0


class _BatchGenerator(torch.Generator):
    share: Share


def draw(sample: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
    """Noise for images ``x`` [B, C, H, W] that does not depend on how their batch is spread over processes.

    Args:
        sample: ``torch.rand`` or ``torch.randn``.
    """
    share = getattr(generator, "share", Share(len(x)))
    noise = sample((share.count, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
    return noise[share.rank :: share.world]


def rows(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of each batch, given by its images' positions, this process's :class:`Share`."""
    return [positions[rank() :: world()] for positions in batches]


@contextmanager
def batch_statistics(model: nn.Module, mode: Statistics) -> Iterator[None]:
    """For the block, let BatchNorm in train mode normalise by what several processes see.

    Args:
        mode: ``sync`` takes mean and variance over all of them; ``local`` over each one's own images, and at
            the end of the block the running statistics become the mean of all processes'.
    """
    norms = [m for m in model.modules() if type(m) in _SYNCED] if world() > 1 else []
    classes = _SYNCED if mode == "sync" else _LOCAL
    for norm in norms:
        norm.__class__ = classes[type(norm)]
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = type(norm).__mro__[2]
    if mode == "local":
        tracked = [b for norm in norms for b in (norm.running_mean, norm.running_var) if isinstance(b, Tensor)]
        for buffer, total in zip(tracked, add_up(tracked) if tracked else (), strict=True):
            buffer.copy_(total / world())


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, and its gradient's."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return _Sum.apply(grad)


class _Synced(_BatchNorm):
    """BatchNorm over the batch of all processes, by one all-reduce of sums.

    torch's SyncBatchNorm knows GPUs alone, weights unequal parts alike, and has no second derivative.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        axes, channels = [0, *range(2, x.dim())], x.shape[1]
        # From the running mean, where no digits cancel between the sum of squares and the squared sum.
        origin = x.new_zeros(channels) if self.running_mean is None else self.running_mean.clone()
        centred = x - _per_channel(origin, x)
        images = centred.new_full((1,), x.numel() / channels)
        sums = _Sum.apply(torch.cat([centred.sum(axes), centred.square().sum(axes), images]))
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
    """BatchNorm over this process's images alone; by the running statistics where they are too few for any."""

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


class _LocalBatchNorm1d(_Local, nn.BatchNorm1d):
    pass


class _LocalBatchNorm2d(_Local, nn.BatchNorm2d):
    pass


# What a network's BatchNorm is for as long as several processes train it; the old class is the second base.
_SYNCED: dict[type, type] = {nn.BatchNorm1d: _SyncedBatchNorm1d, nn.BatchNorm2d: _SyncedBatchNorm2d}
_LOCAL: dict[type, type] = {nn.BatchNorm1d: _LocalBatchNorm1d, nn.BatchNorm2d: _LocalBatchNorm2d}
