"""Modes of a model that a block of code sets and leaves as it found them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def train_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module into train or eval mode, and each back into its own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics; in train mode it normalises with the batch's all the same."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
