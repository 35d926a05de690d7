"""Modes, of a model or of a GPU, that a block of code sets and leaves as it found them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


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
    """Freeze running statistics; in train mode BatchNorm normalises with the batch's all the same.

    InstanceNorm updates what it has whenever it trains, so that it has none in the block.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    instances = [m for m in model.modules() if isinstance(m, _InstanceNorm) and m.track_running_stats and m.training]
    kept = [(layer, layer.running_mean, layer.running_var) for layer in instances]
    for layer in layers:
        layer.track_running_stats = False
    for instance in instances:
        instance.running_mean = instance.running_var = None
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
        for instance, mean, variance in kept:
            instance.running_mean, instance.running_var = mean, variance


def statistics(model: nn.Module, mode: str) -> str:
    """Name the statistics that BatchNorm has in a mode: the mode's; ``none`` of a network that has no BatchNorm."""
    return mode if any(isinstance(module, _BatchNorm) for module in model.modules()) else "none"


def may_depend_on_batch(model: nn.Module) -> bool:
    """Return whether the logits of an image may depend on the images beside it: where a module trains, as BatchNorm
    and dropout do, or a BatchNorm has no running statistics.

    In eval mode no network of ours mixes images, and none of the user's may.
    """
    return any(
        module.training or (isinstance(module, _BatchNorm) and module.running_mean is None)
        for module in model.modules()
    )


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Let torch's attention and transformer layers call the layers within, as they do when they are trained."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def gpu_arithmetic(*, tf32: bool, deterministic: bool | None = None) -> Iterator[None]:
    """Set how a GPU computes float32 products; without effect on other devices.

    Args:
        tf32: in TensorFloat-32, which keeps ten bits of the mantissa; torch's default for convolutions.
        deterministic: by those of cuDNN's algorithms that give the same bits each time; None leaves it as it is.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    kept = cudnn.deterministic if deterministic is None else deterministic
    with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=kept, allow_tf32=tf32):
        matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            matmul.allow_tf32 = before
