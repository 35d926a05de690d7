"""One run on several processes: torchrun starts them, each takes its part of every batch.

Every process holds the whole model and the whole state of the run; all start equal and stay equal,
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
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.files.writer import set_writer

T = TypeVar("T")


TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others, which may be attacking a batch of the evaluation."""


@dataclass(frozen=True)
class _Group:
    rank: int = 0
    world: int = 1
    store: Any = None


_group = _Group()


def rank() -> int:
    """Return this process's number among all of the run's, from 0 on."""
    return _group.rank


def world() -> int:
    """Count the processes."""
    return _group.world


def processes_here() -> int:
    """Count the processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world() > 1 else 1


def restarted() -> bool:
    """Return whether torchrun has started this run again after a process ended."""
    # On several machines, torchrun counts a restart only where its own processes ended.
    return any(gather(launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


def launched() -> bool:
    """Return whether torchrun started this process."""
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
    set_writer(number == 0)
    yield
    # Not after an exception: the others may wait for what this process will never send; torchrun ends them.
    wait()
    _group = _Group()
    set_writer(True)
    dist.destroy_process_group()


def _agree(store: Any, number: int, count: int) -> str:
    """Make a name for this start of the processes: torchrun's store keeps what those of an earlier start wrote.

    Each process asks with a random word, which none before it can have used: the answer is meant for it alone.
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
    """Choose the device of this process where a user asks for ``device``: with several processes, a GPU for each.

    Raises:
        InputError: if all of them would share one GPU.
    """
    if world() == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise InputError(f"--device {device}: each process takes a GPU of its own; give --device cuda")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def speaks_first() -> bool:
    """Return whether this process is the first to ask: of an error that all of them meet, one reports."""
    try:
        return world() == 1 or _group.store.add("spoken", 1) == 1
    except dist.DistError:  # torchrun itself has ended
        return True


def lost_process(error: BaseException) -> bool:
    """Return whether an exception means that another process has ended or does not answer."""
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))


def leave(status: int) -> NoReturn:
    """End this process with a status, at once.

    Otherwise threads of gloo that outlive an error, or have not ended yet, would abort the interpreter as it
    closes down, and the exit status that torchrun relies on would be lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait() -> None:
    """Wait until every process has called this: what the first has written can then be read."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Compute the sum of each tensor over all processes, by one all-reduce; bitwise the same in each of them."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def add_up_gradients(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum the loss and the gradients ``.grad`` over all processes, by one all-reduce; return the loss."""
    differentiated = [p for p in parameters if p.grad is not None]
    total, *gradients = add_up([loss.detach(), *(p.grad for p in differentiated if p.grad is not None)])
    for parameter, gradient in zip(differentiated, gradients, strict=True):
        parameter.grad = gradient
    return total


def gather(value: T) -> list[T]:
    """Gather the values of all processes, in the order of their ranks; anything that can be pickled."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], T]) -> T:
    """Return what ``function`` returns in the first process, the only one to call it, for all of them.

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
    result: T = outcome[0]
    return result
