"""Who consumes whose channels, and what a network costs, read from the network itself.

A network whose layers drop input channels needs fewer output channels as well: a layer has to compute
those that some consumer keeps, and no others. Consumers are found by tracing the network with
``torch.fx``, sizes of feature maps by forward hooks. Operations that mix channels in an unknown way count
as consumers of all of them, so that nothing is ever left out that an output depends on.
"""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from s2ap_core.errors import InputError
from s2ap_core.modes import train_mode
from s2ap_core.scores import MASKABLE, maskable_layers

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CHANNELWISE_MODULES = (
    *(nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
CHANNELWISE = {
    *("relu", "relu_", "contiguous"),
    *(F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.dropout),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
}
SUMS = {"add", "add_", operator.add, operator.iadd, torch.add}

Kind = Literal["layer", "norm", "channelwise", "sum", "flatten", "opaque"]


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

    FLOPs are counted as multiply-accumulates of Conv2d and Linear layers, for one image.

    Args:
        model: masked or not; left as it is.
        image_shape: (C, H, W) of the images it takes.

    Raises:
        InputError: if the network cannot be traced, as where its forward pass depends on its input's values.

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
        costs = _propagate(model, self.trace, image_shape)
        self._calls = Counter(node.target for node in self.nodes if node.op == "call_module")
        self.kinds = {node: self._kind(node) for node in self.nodes}

        reads_image = _before_any_layer(self.trace, self.nodes)
        maskable = maskable_layers(model)
        groups: dict[fx.Node, int] = {}
        self.layers: dict[str, ChannelLayer] = {}
        for node in self.nodes:
            if self.kinds[node] == "layer":
                name, source = str(node.target), node.all_input_nodes[0]
                weight = weight_of(self.module(node))
                self.layers[name] = ChannelLayer(
                    group=groups.setdefault(source, len(groups)),
                    prunable=source not in reads_image and name in maskable,
                    channels_in=weight.shape[1],
                    channels_out=weight.shape[0],
                    cost=costs.pop(name),
                )
        # The others always compute all their channels.
        self._other_flops = sum(
            cost * weight_of(self.trace.get_submodule(name)).shape[:2].numel() for name, cost in costs.items()
        )
        self.dense_flops = round(self.flops({}).item())

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.trace.get_submodule(str(node.target))

    def flops(self, kept: Mapping[str, Tensor]) -> Tensor:
        """Multiply-accumulates of the network without the channels that nobody needs, a float64 scalar.

        Args:
            kept: for each layer that drops input channels, which it keeps, [C_in] of 0 and 1.

        Returns:
            The exact number for such ``kept``; differentiable in them, where a channel's derivative is
            what it costs if no other consumer of it keeps it.
        """
        kept = {name: channels.cpu().double() for name, channels in kept.items()}
        needed = self.needed(kept)
        total = torch.tensor(float(self._other_flops), dtype=torch.float64)
        for node in self.nodes:
            if self.kinds[node] == "layer":
                layer = self.layers[str(node.target)]
                channels_in = kept[str(node.target)].sum() if str(node.target) in kept else layer.channels_in
                total = total + layer.cost * channels_in * needed[node].sum()
        return total

    def needed(self, kept: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """Which channels of each traced tensor some consumer needs, [C] float64 of 0 and 1.

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
        """The channels that a node wants of each of its inputs."""
        kind = self.kinds[node]
        for source in node.all_input_nodes:
            width = channels(source)
            if width is None:
                continue
            if kind == "layer" and str(node.target) in kept:
                yield source, kept[str(node.target)]
            elif kind in ("layer", "opaque"):
                yield source, torch.ones(width, dtype=torch.float64)
            elif kind == "flatten":
                yield source, 1 - (1 - needed[node]).view(width, -1).prod(dim=1)
            else:
                yield source, needed[node]

    def _kind(self, node: fx.Node) -> Kind:
        width, sources = channels(node), [channels(source) for source in node.all_input_nodes]
        if width is None or not sources or None in sources:
            return "opaque"
        if node.op == "call_module":
            module = self.module(node)
            once = self._calls[node.target] == 1
            if isinstance(module, MASKABLE):
                # Other layers' channels are not those of dimension 1, or are tied in groups.
                plain = weight_of(module).dim() == len(shape(node)) and getattr(module, "groups", 1) == 1
                return "layer" if plain and once else "opaque"
            if isinstance(module, NORMS):
                return "norm" if once else "opaque"
            if isinstance(module, CHANNELWISE_MODULES):
                return "channelwise"
            if not isinstance(module, nn.Flatten):
                return "opaque"
        elif node.target in CHANNELWISE and len(sources) == 1:
            return "channelwise"
        elif node.target in SUMS and all(shape(source) == shape(node) for source in node.all_input_nodes):
            return "sum"
        elif node.target not in ("flatten", torch.flatten):
            return "opaque"
        (source,) = node.all_input_nodes
        return "flatten" if len(shape(node)) == 2 and width == shape(source)[1:].numel() else "opaque"


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight [C_out, C_in, ...]."""
    return layer.weight  # type: ignore[return-value]


def shape(node: fx.Node) -> torch.Size:
    """The shape of a traced tensor, for one image."""
    return node.meta["tensor_meta"].shape


def channels(node: fx.Node) -> int | None:
    """The size of a traced tensor's dimension 1; None for what is no tensor or has no such dimension."""
    meta = node.meta.get("tensor_meta")
    return meta.shape[1] if isinstance(meta, TensorMetadata) and len(meta.shape) > 1 else None


class _Tracer(fx.Tracer):
    """Stops at every Conv2d and Linear, those of a class of the user's included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MASKABLE) or super().is_leaf_module(m, module_qualified_name)


def _propagate(model: nn.Module, trace: fx.GraphModule, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Run one black image: shapes go into the nodes, each layer's cost for a pair of channels is returned."""
    costs: Counter[str] = Counter()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MASKABLE):

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                weight = weight_of(layer)
                positions = output.numel() // weight.shape[0]
                costs[name] += positions * weight[0, 0].numel()

            handles.append(module.register_forward_hook(hook))
    reference = next(model.parameters())
    image = torch.zeros(1, *image_shape, device=reference.device, dtype=reference.dtype)
    try:
        with torch.no_grad(), train_mode(model, False):
            ShapeProp(trace).propagate(image)
    finally:
        for handle in handles:
            handle.remove()
    return dict(costs)


def _before_any_layer(trace: fx.GraphModule, nodes: list[fx.Node]) -> set[fx.Node]:
    """The image, and what is computed from it without a Conv2d or Linear in between."""
    found: set[fx.Node] = set()
    for node in nodes:
        layer = node.op == "call_module" and isinstance(trace.get_submodule(str(node.target)), MASKABLE)
        if node.op == "placeholder" or (not layer and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found
