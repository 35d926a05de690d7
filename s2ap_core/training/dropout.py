"""Dropout whose draws are a function of (seed, stage, epoch, iteration), whichever pass and process makes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from s2ap_core.distributed.share import Share
from s2ap_core.seeds import derive_seed

DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


@contextmanager
def repeated_dropout(x: Tensor, share: Share, seed: int) -> Iterator[None]:
    """Let every block with this seed draw the same dropout for the same images of a batch.

    Within the block torch's global generators are seeded; afterwards they have their earlier state again. Where ``x``
    is a part of the batch, dropout is drawn for the whole batch, and each image takes its own part of the draw.

    Args:
        x: [B, ...], the first images of this process's part, which the block passes through a network.
        share: which part of the batch this process has.
        seed: the batch's.
    """
    generators = [torch.default_generator]
    if x.is_cuda:
        generators.append(torch.cuda.default_generators[x.get_device()])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(derive_seed(seed, "dropout"))
    try:
        with nullcontext() if len(x) == share.count else _OfWholeBatch(len(x), share):
            yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


class _OfWholeBatch(TorchFunctionMode):
    """Draws dropout for all images of a batch, of which ``count`` are here."""

    def __init__(self, count: int, share: Share) -> None:
        super().__init__()
        self.count, self.share = count, share
        self.rows = slice(share.rank, share.rank + share.world * count, share.world)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func not in DROPOUTS or len(args[0]) != self.count:
            return func(*args, **options)
        x: Tensor = args[0]
        nhwc = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        whole = torch.zeros(self.share.count, *x.shape[1:], dtype=x.dtype, device=x.device)
        if nhwc:  # the order in which entries are drawn
            whole = whole.contiguous(memory_format=torch.channels_last)
        whole[self.rows] = x
        dropped: Tensor = func(whole, *args[1:], **options)[self.rows]
        return x.copy_(dropped) if options.get("inplace") else dropped
