"""The part of a batch that a process works on, and its terms of the batch's mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from s2ap_core.distributed.group import gather, rank, world
from s2ap_core.seeds import derive_seed

T = TypeVar("T")


def own_items(items: Sequence[T]) -> Sequence[T]:
    """Return the items that this process works on, such as whole batches: every world-th."""
    return items[rank() :: world()]


def gather_in_order(own: Sequence[T]) -> list[T]:
    """Gather the results of all processes for their :func:`own_items`, in the order of the items."""
    by_rank = gather(list(own))
    return [by_rank[i % world()][i // world()] for i in range(sum(map(len, by_rank)))]


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
        """Return this process's part."""
        return cls(count, rank(), world())

    def first(self, n: int) -> int:
        """Count how many of the batch's first ``n`` images are here; they are the first ones here, too."""
        return len(range(self.rank, n, self.world))

    def of_mean(self, mean: Tensor, n: int) -> Tensor:
        """Compute this part's term of the mean over the batch's first ``n`` images; all terms add up to it.

        Args:
            mean: over those of the images that this process has; where it has none, NaN and without effect.
        """
        return term(mean, self.first(n) / n)

    def generator(self, device: torch.device | str, seed: int, *parts: str | int) -> torch.Generator:
        """Seed a generator as :func:`s2ap_core.seeds.generator`, by which :func:`draw` draws this part of the noise."""
        batch_generator = _BatchGenerator(device=device)
        batch_generator.share = self
        return batch_generator.manual_seed(derive_seed(seed, *parts))


def term(mean: Tensor, weight: float) -> Tensor:
    """Compute what one process adds to a mean over all: ``weight * mean``; 0 where it has no mean to add."""
    if weight == 1:
        return mean
    # 0, but still a function of the network: its BatchNorm waits for every process in the backward pass.
    return mean * weight if weight else mean.nan_to_num(0.0) * 0.0


class _BatchGenerator(torch.Generator):
    share: Share


def draw(sample: Callable[..., Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise for images ``x`` [B, C, H, W] that does not depend on how their batch is spread over processes.

    Args:
        sample: ``torch.rand`` or ``torch.randn``.
    """
    share = getattr(generator, "share", Share(len(x)))
    noise = sample((share.count, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
    return noise[share.rank :: share.world]


def rows(batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return this process's :class:`Share` of each batch, given by its images' positions."""
    return [positions[rank() :: world()] for positions in batches]
