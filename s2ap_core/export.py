"""A channel-pruned network as a smaller dense one, equal in output, and its files.

Each layer keeps the input channels of its mask and the output channels that some consumer needs; BatchNorm
follows, and GroupNorm, of which a group goes as a whole or not at all. Where a tensor has channels that one of
several consumers does not want, that consumer gathers its own. See :mod:`s2ap_core.masks.channel_graph`.
"""

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.channel_graph import ChannelGraph, channels, shape
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import maskable_layers, masked_layers
from s2ap_core.masks.masking import bake, masks
from s2ap_core.runs.checkpoints import Checkpoint, build_network

SUFFIXES = (".safetensors", ".pt2")


def image_shape(described: Mapping[str, Any]) -> tuple[int, int, int]:
    """Read (C, H, W) of the images that the network of a header's ``network`` entry takes.

    Raises:
        InputError: if it does not say so, as those of other tools' files.
    """
    if described["input_size"] is None:
        raise InputError("does not say the size of its images: export takes runs and checkpoints of ours")
    return described["input_channels"], described["input_size"], described["input_size"]


def kept_channels(model: nn.Module) -> dict[str, Tensor]:
    """Tell which input channels each masked layer keeps, [C_in] boolean, by layer name.

    Works on the masks as they act on the weights, so that finetuned networks will do.

    Raises:
        InputError: if there are no masks, or a mask drops single weights of a channel or no channel at all:
            nothing would shrink.
    """
    kept, bits_of = {}, masks(model)
    for name, layer in masked_layers(model).items():
        mask = bits_of[layer.tensor("weight")]
        others = [dim for dim in range(mask.dim()) if dim != layer.input_dim]
        bits = mask.sum(others, keepdim=True) > 0
        if (mask != bits).any():
            raise InputError(
                f"the mask of {layer.tensor('weight')} drops single weights, not channels, so that nothing would"
                " shrink: export takes runs of hydra-channels and harp-channels"
            )
        kept[name] = bits.flatten()
    if all(bits.all() for bits in kept.values()):
        raise InputError("no channel is pruned, nothing would shrink: export takes a result of the search")
    return kept


def shrink(model: nn.Module, image_shape: tuple[int, int, int], kept: Mapping[str, Tensor]) -> fx.GraphModule:
    """Cut the smaller network, in eval mode; its modules have the names that they have in ``model``.

    Args:
        model: masked or plain; left as it is.
        image_shape: (C, H, W) of the images.
        kept: the input channels that each layer keeps, [C_in] boolean; a layer that is not named keeps all.

    Returns:
        A module of smaller convolutions, Linear, BatchNorm, GroupNorm and PReLU, whose logits are those of ``model``
        with all other channels' weights zero. The channels that consumers gather are no part of its state dict.

    Raises:
        InputError: if the network cannot be traced, or ``kept`` does not fit it.
    """
    graph = ChannelGraph(bake(model).eval(), image_shape)
    for name, bits in kept.items():
        layer = graph.layers.get(name)
        if layer is None or len(bits) != layer.channels_in or not bits.any():
            raise InputError(f"{name} is no layer of this network that keeps some of {len(bits)} input channels")
    kept = {name: bits.cpu() for name, bits in kept.items()}
    needed = graph.needed({name: bits.double() for name, bits in kept.items()})
    wanted = {node: bits.bool().nonzero()[:, 0] for node, bits in needed.items()}
    held: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        indices = _cut(graph, node, kept, wanted, held)
        if indices is not None:
            held[node] = indices
    graph.trace.graph.eliminate_dead_code()  # sizes that a view named
    graph.trace.recompile()
    return graph.trace


def _cut(
    graph: ChannelGraph,
    node: fx.Node,
    kept: Mapping[str, Tensor],
    wanted: Mapping[fx.Node, Tensor],
    held: Mapping[fx.Node, Tensor],
) -> Tensor | None:
    """Make a node of the traced network smaller, in place.

    Args:
        kept: as for :func:`shrink`.
        wanted: the channels that the consumers of a node want, as indices into those of the full network.
        held: the channels that the nodes before it hold, likewise.

    Returns:
        The channels that it holds now; None where it has none.
    """
    match graph.kinds[node]:
        case "layer":
            (source,) = node.all_input_nodes
            name = str(node.target)
            inputs = kept[name].nonzero()[:, 0] if name in kept else torch.arange(graph.layers[name].channels_in)
            _gather(graph, node, source, held[source], inputs)
            _slice_layer(Layer(name, graph.module(node), "weight"), wanted[node], inputs)
            return wanted[node]
        case "norm":
            (source,) = node.all_input_nodes
            _slice_norm(graph.module(node), held[source])
            return held[source]
        case "group norm":
            (source,) = node.all_input_nodes
            full = torch.zeros(channels(node) or 0, dtype=torch.float64).index_fill(0, wanted[node], 1)
            inputs = graph.whole_groups(node, full).nonzero()[:, 0]
            _gather(graph, node, source, held[source], inputs)
            _slice_norm(graph.module(node), inputs)
            return inputs
        case "channelwise":
            return held[node.all_input_nodes[0]]
        case "sum":
            for source in node.all_input_nodes:
                _gather(graph, node, source, held[source], wanted[node])
            return wanted[node]
        case "flatten":
            source = node.all_input_nodes[0]
            if node.op != "call_module":  # a view may name the full number of features
                node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (source, 1), {}
            area = shape(source)[2:].numel()
            return (held[source][:, None] * area + torch.arange(area)).flatten()
        case _:
            width = channels(node)
            return None if width is None else torch.arange(width)


def _gather(graph: ChannelGraph, node: fx.Node, source: fx.Node, held: Tensor, wanted: Tensor) -> None:
    """Let a node read of another the channels that it wants, of those that the other holds."""
    if torch.equal(held, wanted):
        return
    name = f"channels_of_{source.name}_for_{node.name}"
    device = next(graph.trace.parameters()).device
    graph.trace.register_buffer(name, torch.searchsorted(held, wanted).to(device), persistent=False)
    with graph.trace.graph.inserting_before(node):
        indices = graph.trace.graph.get_attr(name)
        gathered = graph.trace.graph.call_function(torch.index_select, (source, 1, indices))
    node.replace_input_with(source, gathered)


def _slice_layer(layer: Layer, outputs: Tensor, inputs: Tensor) -> None:
    module, weight = layer.module, layer.weight.detach()
    outputs, inputs = outputs.to(weight.device), inputs.to(weight.device)
    rows, columns = (outputs, inputs) if layer.input_dim == 1 else (inputs, outputs)
    module.weight = nn.Parameter(weight[rows][:, columns].contiguous())
    if isinstance(module.bias, Tensor):
        module.bias = nn.Parameter(module.bias.detach()[outputs])
    size = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    for name, indices in zip(size, (inputs, outputs), strict=True):
        setattr(module, name, len(indices))


def _slice_norm(norm: nn.Module, kept: Tensor) -> None:
    """Keep some channels of a BatchNorm or PReLU, or some groups of a GroupNorm, in place."""
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups = norm.num_groups * len(kept) // norm.num_channels
    width = {nn.PReLU: "num_parameters", nn.GroupNorm: "num_channels"}
    setattr(norm, width.get(type(norm), "num_features"), len(kept))
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(norm, name, None)
        if tensor is not None:
            sliced = tensor.detach()[kept.to(tensor.device)]
            setattr(norm, name, nn.Parameter(sliced) if isinstance(tensor, nn.Parameter) else sliced)


def exported_flops(model: nn.Module, image_shape: tuple[int, int, int], kept: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count the FLOPs (multiply-accumulates for one image) of the dense network, and of :func:`shrink`'s."""
    graph = ChannelGraph(model, image_shape)
    return graph.dense_flops, round(graph.flops(kept).item())


def save_exported(path: Path, smaller: nn.Module, checkpoint: Checkpoint, kept: Mapping[str, Tensor]) -> None:
    """Write a smaller network, as its file's name says.

    ``.safetensors``: the weights, and in the header the network that they were cut from and the channels
    each layer keeps; :func:`load_exported` reads it. ``.pt2``: a program of ``torch.export``, which
    ``torch.export.load(path).module()`` runs without this package, on batches of any size.

    Raises:
        InputError: if the name has another suffix, or the file cannot be written.
    """
    check_suffix(path)
    if path.suffix == ".safetensors":
        indices = {name: bits.nonzero()[:, 0].tolist() for name, bits in kept.items()}
        header = {k: v for k, v in checkpoint.header.items() if k != "sha256"}
        save_tensors(path, smaller.state_dict(), {**header, "channels": indices})
        return
    # Two images: torch.export takes a batch of one for a constant.
    images = torch.zeros(2, *image_shape(checkpoint.header["network"]))
    program = torch.export.export(
        copy.deepcopy(smaller).cpu(), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    written = io.BytesIO()
    torch.export.save(program, written)
    write_file(path, written.getvalue())


def check_suffix(path: Path) -> None:
    """Raise InputError unless :func:`save_exported` knows what to write under this name."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: name it .safetensors, or .pt2 for torch.export")


def load_exported(path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load the smaller network of a ``.safetensors`` file of :func:`save_exported`, in eval mode.

    Raises:
        InputError: if the file is missing, damaged, or no exported network.
    """
    tensors, header = load_tensors(path)
    try:
        kept = {}
        full = build_network(header["network"])
        for name, indices in header["channels"].items():
            layer = maskable_layers(full)[name]
            kept[name] = torch.zeros(layer.weight.shape[layer.input_dim], dtype=torch.bool)
            kept[name][indices] = True
        smaller = shrink(full, image_shape(header["network"]), kept)
        smaller.load_state_dict(tensors)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: not an exported network; make one with s2ap-diag export RUN") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return smaller.to(device)
