"""Which layers consume which channels, and how many FLOPs a network takes, read from the network itself.

A network whose layers drop input channels needs fewer output channels as well: a layer has to compute
those that some consumer keeps, and no others. Consumers are found by tracing the network with
``torch.fx``, sizes of feature maps by forward hooks. Operations that mix channels in an unknown way count
as consumers of all of them, so that nothing is ever left out that an output depends on.
"""

import operator
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from s2ap_core.errors import InputError
from s2ap_core.masks.costs import measure_costs, refuse_parameters_used_elsewhere
from s2ap_core.masks.kinds import MASKABLE, Layer
from s2ap_core.masks.layers import maskable_layers

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


CHANNELWISE_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
)


CHANNELWISE = {
    *("relu", "relu_", "contiguous"),
    *(F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.dropout),
}


POOLS = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
"""By how many dimensions they pool: the last ones, so that of a tensor of one dimension less they pool channels."""


POOL_FUNCTIONS = {
    1: (F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    2: (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    3: (F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
}


SUMS = {"add", "add_", operator.add, operator.iadd, torch.add}


FLATTENS = {"flatten", torch.flatten, "view", "reshape", torch.reshape}


Kind = Literal["layer", "norm", "group norm", "channelwise", "sum", "flatten", "size", "opaque"]


@dataclass(frozen=True)
class ChannelLayer:
    """A layer whose input channels can be dropped.

    Attributes:
        group: number of the tensor that the layer reads; layers that read the same one share it.
        prunable: whether it may be masked: it does not read the image, nor does the network declare it dense.
        channels_in, channels_out: their numbers.
        cost: multiply-accumulates for each pair of an input and an output channel.
    """

    group: int
    prunable: bool
    channels_in: int
    channels_out: int
    cost: int


class ChannelGraph:
    """The channels of a network and their consumers.

    FLOPs are counted as multiply-accumulates of convolutions and linear layers, among them attention's projections, for
    one image.

    Args:
        model: masked or not; left as it is.
        image_shape: (C, H, W) of the images it takes.

    Raises:
        InputError: if the network cannot be traced, as where its forward pass depends on its input's values, or takes
            no such images; if a layer's weight is used elsewhere, where nothing counts what it costs.

    Attributes:
        trace: the traced network, whose modules are those of ``model``.
        layers: by name, in the order in which they compute.
        dense_flops: of the whole network.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    >>> graph = ChannelGraph(net, (1, 5, 5))
    >>> graph.dense_flops, 3 * 3 * (9 * 1 * 4 + 4 * 2)
    (396, 396)
    >>> graph.flops({"2": torch.tensor([True, False, False, True])}).item()
    198.0
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        try:
            tracer = _Tracer()
            self.trace = fx.GraphModule(model, tracer.trace(model))
        except (TypeError, ValueError, RuntimeError) as error:  # what fx raises on Python control flow
            raise InputError(f"the network cannot be traced for channel pruning ({error}); give another") from error
        self.trace.graph.eliminate_dead_code()
        self.nodes = list(self.trace.graph.nodes)
        costs = measure_costs(model, self.trace, image_shape)
        refuse_parameters_used_elsewhere(model, self.nodes)
        self._uses = uses(self.nodes)
        self.kinds = {node: self._kind(node) for node in self.nodes}

        reads_image = _before_any_layer(self.trace, self.nodes)
        maskable = maskable_layers(model)
        groups: dict[fx.Node, int] = {}
        self.layers: dict[str, ChannelLayer] = {}
        for node in self.nodes:
            if self.kinds[node] == "layer":
                name, source = str(node.target), node.all_input_nodes[0]
                layer = Layer(name, self.module(node), "weight")
                self.layers[name] = ChannelLayer(
                    group=groups.setdefault(source, len(groups)),
                    prunable=source not in reads_image and name in maskable,
                    channels_in=layer.weight.shape[layer.input_dim],
                    channels_out=layer.weight.shape[1 - layer.input_dim],
                    cost=costs.pop(name) // layer.weight.shape[:2].numel(),
                )
        # The others always compute all their channels.
        self._other_flops = sum(costs.values())
        self.dense_flops = round(self.flops({}).item())

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self.trace.get_submodule(str(node.target))

    def flops(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Count the multiply-accumulates of the network without the channels that nobody needs, a float64 scalar.

        Args:
            kept: for each layer that drops input channels, which it keeps, [C_in] of 0 and 1.

        Returns:
            The exact number for such ``kept``; differentiable in them, where a channel's derivative is
            what it costs if no other consumer of it keeps it.
        """
        if kept:  # hundreds of short vectors are added up on the CPU, and read back from a GPU at once
            together = torch.cat([channels.double() for channels in kept.values()]).cpu()
            kept = dict(zip(kept, together.split([len(channels) for channels in kept.values()]), strict=True))
        needed = self.needed(kept)
        total = torch.tensor(float(self._other_flops), dtype=torch.float64)
        for node in self.nodes:
            if self.kinds[node] == "layer":
                layer = self.layers[str(node.target)]
                channels_in = kept[str(node.target)].sum() if str(node.target) in kept else layer.channels_in
                total = total + layer.cost * channels_in * needed[node].sum()
        return total

    def needed(self, kept: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """Find which channels of each traced tensor some consumer needs, [C] float64 of 0 and 1.

        Args:
            kept: as for :meth:`flops`, float64.
        """
        needed: dict[fx.Node, Tensor] = {}
        for node in reversed(self.nodes):
            for source, wanted in self._wanted(node, needed, kept):
                before = needed.get(source)
                # The union of 0/1 vectors, differentiable: a + b - ab.
                needed[source] = wanted if before is None else before + wanted - before * wanted
        return needed

    def _wanted(
        self, node: fx.Node, needed: Mapping[fx.Node, Tensor], kept: Mapping[str, Tensor]
    ) -> Iterator[tuple[fx.Node, Tensor]]:
        """Name the channels that a node wants of each of its inputs."""
        kind = self.kinds[node]
        for source in node.all_input_nodes:
            width = channels(source)
            if width is None or kind == "size":
                continue
            if kind == "layer" and str(node.target) in kept:
                yield source, kept[str(node.target)]
            elif kind in ("layer", "opaque"):
                yield source, torch.ones(width, dtype=torch.float64)
            elif kind == "group norm":
                yield source, self.whole_groups(node, needed[node])
            elif kind == "flatten":
                yield source, 1 - (1 - needed[node]).view(width, -1).prod(dim=1)
            else:
                yield source, needed[node]

    def whole_groups(self, node: fx.Node, wanted: Tensor) -> Tensor:
        """Add to the channels wanted of a GroupNorm, [C] of 0 and 1, the others of their groups: it divides by all."""
        groups = self.module(node).num_groups
        assert isinstance(groups, int)
        any_wanted = 1 - (1 - wanted).view(groups, -1).prod(dim=1)
        return any_wanted.repeat_interleave(len(wanted) // groups)

    def _kind(self, node: fx.Node) -> Kind:
        if _reads_shape(node) and _serves_flattening(node):
            return "size"
        if _is_call(node, FLATTENS) and _makes_rows(node):
            return "flatten"
        width, sources = channels(node), [channels(source) for source in node.all_input_nodes]
        if width is None or not sources or None in sources:
            return "opaque"
        if node.op == "call_module":
            module = self.module(node)
            once = self._uses[str(node.target)] == 1
            if isinstance(module, MASKABLE):
                # Other layers' channels are not those of dimension 1, or are tied in groups.
                plain = module.weight.dim() == len(shape(node)) and getattr(module, "groups", 1) == 1
                return "layer" if plain and once else "opaque"
            if isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
                return "norm" if once else "opaque"
            if isinstance(module, nn.GroupNorm):
                return "group norm" if once else "opaque"
            if isinstance(module, (*CHANNELWISE_MODULES, *POOLS.get(_pixel_dims(node), ()))):
                return "channelwise"
            if isinstance(module, nn.Flatten) and _makes_rows(node):
                return "flatten"
        elif node.target in {*CHANNELWISE, *POOL_FUNCTIONS.get(_pixel_dims(node), ())} and len(sources) == 1:
            return "channelwise"
        elif node.target in SUMS and all(shape(source) == shape(node) for source in node.all_input_nodes):
            return "sum"
        return "opaque"


def uses(nodes: Iterable[fx.Node]) -> Counter[str]:
    """Count how often each module of a trace is called, or one of its tensors read, by its name."""
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    read = [str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"]
    return Counter([*called, *read])


def shape(node: fx.Node) -> torch.Size:
    """Return the shape of a traced tensor, for one image."""
    size: torch.Size = node.meta["tensor_meta"].shape
    return size


def channels(node: fx.Node) -> int | None:
    """Return the size of a traced tensor's dimension 1; None for what is no tensor or has no such dimension."""
    meta = node.meta.get("tensor_meta")
    return meta.shape[1] if isinstance(meta, TensorMetadata) and len(meta.shape) > 1 else None


def _pixel_dims(node: fx.Node) -> int:
    """Return how many dimensions beside images and channels the first tensor has that a node reads."""
    return len(shape(node.all_input_nodes[0])) - 2


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("tensor_meta"), TensorMetadata)


def _is_call(node: fx.Node, targets: Container[object]) -> bool:
    """Return whether a node calls one of these functions or methods; a module may have a method's name."""
    return node.op in ("call_function", "call_method") and node.target in targets


def _makes_rows(node: fx.Node) -> bool:
    """Return whether a node that keeps the order of entries makes [1, F] of a tensor; its inputs may include sizes."""
    source, *sizes = node.all_input_nodes
    width = channels(source)
    if width is None or any(map(_is_tensor, sizes)):
        return False
    return len(shape(node)) == 2 and shape(node)[1] == width * shape(source)[2:].numel()


def _reads_shape(node: fx.Node) -> bool:
    """Return whether a node asks a tensor for its shape: ``x.shape``, ``x.size()``, ``x.size(dim)``."""
    return _is_call(node, {"size"}) or (_is_call(node, {getattr}) and node.args[1] == "shape")


def _serves_flattening(size: fx.Node) -> bool:
    """Return whether a shape, or what is computed of it, is the number of images or only serves to flatten."""
    if _is_call(size, {"size"}) and size.args[1:] == (0,):
        return True
    if _is_call(size, {operator.getitem}) and size.args[1] == 0 and _reads_shape(size.all_input_nodes[0]):
        return True
    return size.op != "output" and all(
        _is_call(user, FLATTENS) and _makes_rows(user) if _is_tensor(user) else _serves_flattening(user)
        for user in size.users
    )


class _Tracer(fx.Tracer):
    """Stops at every layer that can be masked and at attention, those of a class of the user's included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*MASKABLE, nn.MultiheadAttention)) or super().is_leaf_module(m, module_qualified_name)


def _before_any_layer(trace: fx.GraphModule, nodes: list[fx.Node]) -> set[fx.Node]:
    """Find the image, and what is computed from it without a layer that can be masked in between."""
    before: set[fx.Node] = set()
    for node in nodes:
        layer = node.op == "call_module" and isinstance(trace.get_submodule(str(node.target)), MASKABLE)
        if node.op == "placeholder" or (not layer and _is_tensor(node) and not before.isdisjoint(node.all_input_nodes)):
            before.add(node)
    return before
