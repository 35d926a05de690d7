"""The same network with fewer operations, for the many passes of an attack: weights are constant in them."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from s2ap_core.distributed.batch_norm import single_process_class
from s2ap_core.masks.channel_graph import uses
from s2ap_core.masks.layers import (
    class_before_masks,
    constant_mask,
    has_forward_hooks,
    has_parametrization,
    to_channels_last,
)
from s2ap_core.modes import gpu_arithmetic, train_mode
from s2ap_core.training.constant_convolution import ConstantConvolution

log = logging.getLogger(__name__)


M = TypeVar("M", bound=nn.Module)


RELUS = {("call_function", F.relu), ("call_function", torch.relu), ("call_method", "relu"), ("call_method", "relu_")}
"""As a trace writes them, where they are no module."""

TOLERANCE = 1e-4
"""By how much of their range the logits of the folded network may differ: rounding stays a hundred times below."""


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """Build the same function in eval mode with BatchNorm folded into the convolutions, channels last.

    This makes a pass on the CPU a tenth to a third cheaper, and changes logits by rounding alone, which is
    checked on ``images``: where logits differ by more than 1e-4 of their range, a line is logged and the network
    returned as it is. So is a network that cannot be traced, or cannot be laid out channels last.

    Args:
        model: in eval mode, without masks; left as it is.
        images: [B, C, H, W], some that the network will be evaluated on.
    """
    try:
        candidate = fx.symbolic_trace(copy.deepcopy(model))  # a copy, since the trace shares the modules
        for fold in _fold(candidate):
            fold.follow()
        to_channels_last(candidate)
        difference = _difference(model, candidate, images)
    except Exception as error:  # whatever the network's own code raises on a stand-in for its input
        log.debug("BatchNorm is not folded, the network is evaluated as it is: %s", error)
        return model
    if not difference <= TOLERANCE:  # NaN, too
        log.warning(
            "folding BatchNorm into the convolutions would change the logits by %.2g of their range: "
            "the network is evaluated as it is, which takes longer",
            difference,
        )
        return model
    return candidate


@contextmanager
def attacked(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """Hold masks and weights constant in eval mode, and yield the same function with constant convolutions.

    BatchNorm is folded into them, and they cut at 0 where a ReLU follows. It can be differentiated once, in its images.

    What is yielded follows the network: it is traced once, and its convolutions are computed anew at each call. A
    network that :func:`folded` would leave as it is is yielded itself; so is one under autocast, or with hooks on its
    forward pass, which would not be called.

    Args:
        images: [B, C, H, W], some that it will be attacked on.
    """
    with train_mode(model, False), constant_mask(model):
        kind = images.device.type
        lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if lowered or has_forward_hooks(model):
            yield model
            return
        twin = _twins.get(model)
        if twin is not None and twin.in_force:
            yield twin.network or model
            return
        if twin is None or not twin.is_of(model):
            with torch.random.fork_rng([images.device] if images.is_cuda else []):  # of a network that draws
                twin = _twins[model] = _Twin(model, images)
        with twin.following():
            yield twin.network or model


class _Twin:
    """A trace of a network that shares its modules, but for the convolutions: ours are constant, BatchNorm folded in.

    Attributes:
        network: the trace; None if the network cannot be folded.
        in_force: whether a block of :meth:`following` is open.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.parts = list(model.modules())[1:]  # without the network itself, which then can be collected
        self.folds: list[_Fold] = []
        self.network: nn.Module | None = None
        self.in_force = False
        if not any(isinstance(part, nn.Conv2d) for part in self.parts):
            return
        try:
            network = fx.GraphModule(model, _Tracer().trace(model))
            self.folds = _fold(network)
            if not self.folds or _constants(network, model):
                return
            self._follow()
            # A few images tell a function that is traced wrongly; rounding, which training changes, has no say.
            if images.device.type == "meta" or _difference(model, network, images[:4]) <= 0.01:
                self.network = network
        except Exception as error:  # whatever the network's own code raises on a stand-in for its input
            log.debug("BatchNorm is not folded, the network is attacked as it is: %s", error)

    def is_of(self, model: nn.Module) -> bool:
        """Return whether the network still is made of the same modules, with numbers of the same kind and place."""
        pairs = [(fold.conv.weight, fold.ours.weight) for fold in self.folds]
        stayed = all((w.dtype, w.device) == (ours.dtype, ours.device) for w, ours in pairs)
        return stayed and list(model.modules())[1:] == self.parts

    @contextmanager
    def following(self) -> Iterator[None]:
        """Compute our convolutions from the network's, once for the block, in which its weights are constant."""
        if self.network is not None:
            self._follow()
        self.in_force = True
        try:
            yield
        finally:
            self.in_force = False
            for fold in self.folds:
                fold.ours.laid_out.clear()  # memory that the passes of training can use

    def _follow(self) -> None:
        for fold in self.folds:
            fold.follow()


_twins: WeakKeyDictionary[nn.Module, _Twin] = WeakKeyDictionary()


class _Fold(NamedTuple):
    """A convolution with its BatchNorm, if it has one, and ours that does the work of both."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    ours: ConstantConvolution

    @torch.no_grad()
    def follow(self) -> None:
        """Compute our weight and bias from theirs."""
        conv, norm, ours = self
        if norm is None:
            ours.set(conv.weight, conv.bias)
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = (norm.running_mean, norm.running_var, norm.eps)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
        ours.set(weight, bias)


class _Tracer(fx.Tracer):
    """Trace down to the modules that hold parameters, whose masks a trace would take for constants."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = next(m.parameters(recurse=False), None) is not None or has_parametrization(m)
        return own or super().is_leaf_module(m, module_qualified_name)


def _constants(traced: fx.GraphModule, model: nn.Module) -> list[str]:
    """List the tensors that the trace holds and the network does not: computed once, they would not follow it."""
    held = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return [str(node.target) for node in traced.graph.nodes if node.op == "get_attr" and node.target not in held]


@torch.no_grad()
def _difference(model: nn.Module, candidate: nn.Module, images: Tensor) -> Tensor:
    """Compute the largest difference of logits, as a share of their range."""
    with gpu_arithmetic(tf32=False):  # TensorFloat-32 would differ by more than the difference looked for
        expected, logits = model(images), candidate.forward(images)  # called, fx would print what it raises
    difference: Tensor = (logits - expected).abs().max() / (expected.max() - expected.min())
    return difference


def _fold(traced: fx.GraphModule) -> list[_Fold]:
    """Replace, in place, each convolution that is called once, with the BatchNorm and the ReLU that it alone feeds."""
    used, folds = uses(traced.graph.nodes), []
    for node in traced.graph.nodes:
        conv = _module(traced, node, nn.Conv2d)
        if conv is None or used[str(node.target)] > 1 or not ConstantConvolution.can_do(conv):
            continue
        if any(used[outer] for outer in _around(str(node.target))):  # which is the network's own, and calls it, too
            continue
        norm = _norm_after(traced, node)
        fold = _Fold(conv, norm, ConstantConvolution(conv))
        if norm is not None:
            _drop(*node.users)
        fold.ours.relu = _is_relu_after(traced, node)
        if fold.ours.relu:
            _drop(*node.users)
        parent, _, name = str(node.target).rpartition(".")
        setattr(traced.get_submodule(parent), name, fold.ours)
        folds.append(fold)
    traced.recompile()
    return folds


def _around(name: str) -> list[str]:
    """List the modules that a module lies in, by name."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _norm_after(traced: fx.GraphModule, node: fx.Node) -> nn.BatchNorm2d | None:
    """Return the BatchNorm that takes what a node gives, if nothing else does and it can be folded."""
    norms = [_module(traced, user, nn.BatchNorm2d) for user in node.users]
    return norms[0] if len(norms) == 1 and norms[0] is not None and norms[0].running_mean is not None else None


def _is_relu_after(traced: fx.GraphModule, node: fx.Node) -> bool:
    relus = [(u.op, u.target) in RELUS or _module(traced, u, nn.ReLU) is not None for u in node.users]
    return relus == [True]


def _drop(node: fx.Node) -> None:
    """Let what a node of one input takes stand for what it gives."""
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _kind_of(module: nn.Module) -> type:
    return class_before_masks(module) if has_parametrization(module) else single_process_class(module)


def _module(traced: fx.GraphModule, node: fx.Node, kind: type[M]) -> M | None:
    """Return the module that a node calls, if it is exactly of this class, masks and several processes apart."""
    called = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    return called if isinstance(called, kind) and _kind_of(called) is kind else None
