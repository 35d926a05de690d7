"""Checkpoints of HYDRA, HARP, robust scratch tickets (RLTH) and torch.nn.utils.prune, read without conversion.

The format is recognised from the keys. Files are pickles of a state dict, alone or in an envelope, or safetensors
without our header; a pickle may hold tensors and plain values, and nothing that could run.
"""

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.errors import InputError
from s2ap_core.foreign.envelope import check_one_network, two_networks
from s2ap_core.foreign.formats import SCORES, StateDict, _file_name, is_binary
from s2ap_core.foreign.layouts import HOW
from s2ap_core.foreign.names import prefix_between, prefixes_between, split_kind
from s2ap_core.foreign.options import own_options
from s2ap_core.foreign.published import last_linear, under_our_names, with_linear_head
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.masking import masks
from s2ap_core.masks.parametrization import ScoreMask, check_keep
from s2ap_core.masks.state import selects
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import Checkpoint, build_network, fill

log = logging.getLogger(__name__)


def foreign_checkpoint(
    source: StateDict,
    *,
    network: str | None = None,
    dataset: str | None = None,
    keep: float | None = None,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Build the model of another tool's checkpoint, with its masks, in eval mode.

    Scores become score masks, with HARP's rates where the file has them; ``weight_mask`` becomes a fixed mask, and
    so do the nonzero weights of a dense file.

    Args:
        source: what :func:`s2ap_core.foreign.formats.read_state` read.
        network: a key of NETWORKS, for a file whose keys fit none or several of them.
        dataset: goes into the header.
        keep: fraction kept; files with scores do not say it.
        width: of the network; None takes it from the shapes.
        device: where the model is put.

    Raises:
        InputError: if the file does not say what it must, or does not fit its network; the line names the first
            tensor that does not.
    """
    try:
        described, state, renamed = _fit(source, network, width, dataset)
        header = _header(source, state, described, keep, renamed) | {"dataset": dataset}
        model = build_network(described)
        fill(model, state, header["keep"])
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    return Checkpoint(source.path, model.to(device).eval(), header)


def foreign_masks(
    source: StateDict, *, network: str | None = None, keep: float | None = None, width: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read boolean masks by weight name (``conv1.weight``) and the header, without building the network.

    Where no network is named and none is recognised, every layer with scores or a mask counts, of a dense file every
    weight of two dimensions or more.

    Raises:
        InputError: as :func:`foreign_checkpoint`; if a dense file of an unknown network has no pruned weight, or
            holds masks and weights.
    """
    try:
        if network is None and recognise(source.tensors) is None:
            check_one_network(source.tensors)
            tensors = nonzero_masks(source.tensors) if source.format == "dense" else source.tensors
            header = _header(source, tensors, None, keep)
            return _masks_of_any(tensors, header["keep"]), header
        described, state, renamed = _fit(source, network, width)
        header = _header(source, state, described, keep, renamed)
        return masks_without_weights(described, state, header["keep"]), header
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def masks_without_weights(described: Mapping[str, Any], state: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Select the boolean masks of a state dict under plain names, in the order of the network that a header describes.

    Raises:
        InputError: if names or shapes do not fit the network, or scores hold NaN.
    """
    with torch.device("meta"):
        model = build_network(described)
    fill(model, {name: t if selects(name) else t.to("meta") for name, t in state.items()}, keep)
    return masks(model)


def nonzero_masks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the masks ``weight != 0`` of the layers of a network that is not known.

    Raises:
        InputError: if there are no such layers, none of their weights is 0, or some of them are masks of 0 and 1.
    """
    weights = {n: t for n, t in tensors.items() if split_kind(n)[1] == "weight" and t.ndim >= 2 and t.numel()}
    if not weights:
        raise InputError("holds neither masks nor weights of layers; give a state dict or masks")
    marked = [name for name, weight in weights.items() if is_binary(weight) and weight.any()]
    other = [name for name, weight in weights.items() if not is_binary(weight)]
    if marked and other:
        raise InputError(f"{other[0]} holds values other than 0 and 1, {marked[0]} no others; save masks alone")
    if all(weight.all() for weight in weights.values()):
        raise InputError("no weight is 0, so that it says no mask; give a pruned network")
    return {f"{split_kind(name)[0]}mask": weight != 0 for name, weight in weights.items()}


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the network most of whose names, nine tenths at least, and no other layers, are among these; else None.

    Raises:
        InputError: if they are there twice.
    """
    shares: dict[str, float] = {}
    for name in NETWORKS:
        model = _on_meta(name, norm_affine=False)
        names, (inside, _) = model.state_dict().keys(), _renamed(tensors, model)
        share = len(names & inside.keys()) / len(names)
        if share >= 0.9 and not _unknown_layers(model, inside):
            shares[name] = share
    best = [name for name, share in shares.items() if share == max(shares.values())]
    if len(best) != 1:
        return None
    _check_one_prefix(tensors, _on_meta(best[0], norm_affine=False))
    return best[0]


def _check_one_prefix(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise InputError if a network's names are there under two prefixes."""
    found = prefixes_between(tensors, model.state_dict().keys())
    if len(found) > 1:
        raise two_networks(*found[:2])


# --- from plain names to a network ---
def _renamed(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Give the tensors under the network's names where they have another tool's or differ by a prefix, and say so."""
    names = model.state_dict().keys()
    ours, tool = under_our_names(tensors)
    if tool and names <= ours.keys():
        return ours, f", the layers of {tool}'s VGG-16"
    if more := prefix_between(tensors, names):
        return {n.removeprefix(more): t for n, t in tensors.items() if n.startswith(more)}, f", names without {more}"
    own = [name for name, tensor in tensors.items() if split_kind(name)[1] == "weight" and tensor.ndim > 1]
    if less := prefix_between(names, own):
        return {less + name: tensor for name, tensor in tensors.items()}, f", names with {less}"
    return dict(tensors), ""


def _on_meta(name: str, **options: Any) -> nn.Module:
    """Build the network without memory for its tensors: names and shapes alone; not to be changed."""
    return _cached_on_meta(name, NETWORKS.find(name), json.dumps(options))


@lru_cache(maxsize=64)
def _cached_on_meta(name: str, factory: object, options: str) -> nn.Module:
    del factory  # a part of the key: a name may be registered anew
    with torch.device("meta"):
        return build_network({"name": name, **json.loads(options)})


def _unknown_layers(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """List layers within the network's own parts that it lacks. Whole parts it lacks (``sub_block1``) are extras."""
    parts = {name for name, _ in model.named_children()}
    known = {name for name, _ in model.named_modules()}
    layers = (key.removesuffix(".weight") for key in tensors if key.endswith(".weight"))
    return [layer for layer in layers if layer.partition(".")[0] in parts and layer not in known]


def _fit(
    source: StateDict, network: str | None, width: int | None, dataset: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Give the header's description of the network, and the tensors that belong to it, names and shapes checked.

    Say as well how the file's names differ from the network's.
    """
    name = network or recognise(source.tensors)
    if name is None:
        check_one_network(source.tensors)
        raise InputError(
            f"does not say its network; give --network, one of {', '.join(NETWORKS)}, or your own, FILE.py:FACTORY"
        )
    bare = _on_meta(name, norm_affine=False)
    _check_one_prefix(source.tensors, bare)
    tensors, renamed = _renamed(source.tensors, bare)
    tensors = with_linear_head(tensors, bare)
    if unknown := _unknown_layers(bare, tensors):
        raise InputError(f"{name} has no layer {unknown[0]}; give another --network")
    affine = _on_meta(name).state_dict().keys() - bare.state_dict().keys()
    described: dict[str, Any] = {
        "name": name,
        "classes": _size(name, "classes", (10, 20), tensors, 10),
        "width": width or _size(name, "width", (48, 96), tensors, None),
        "input_size": None,
        "input_channels": _size(name, "input_channels", (3, 6), tensors, 3),
        "norm_affine": bool(affine & tensors.keys()),
    }
    if options := own_options(name, source, tensors, dataset):
        described["options"] = options
    model = _on_meta(**described)
    tensors = _with_masks(source, tensors, model)
    shapes = _expected(source.format, tensors, model)
    for key, shape in shapes.items():
        theirs = _file_name(key, source.format)
        if key not in tensors:
            remedy = "give a whole checkpoint or another --network"
            if key.endswith("running_mean") and not any(other.endswith("running_mean") for other in tensors):
                remedy = "a file does not say how many groups a GroupNorm has: give one of a network with BatchNorm"
            raise InputError(f"lacks {theirs}, which {name} has; {remedy}")
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"{theirs} has shape {list(tensors[key].shape)}, {name} has {list(shape)}; "
                "give another --network or a file of this network"
            )
    return described, {key: tensors[key] for key in shapes}, renamed


def _with_masks(source: StateDict, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors with a mask for each layer that has one, and for no layer that the network keeps dense."""
    layers = maskable_layers(model)
    if source.format == "dense":
        if source.method == "harp":
            log.warning(
                "%s: HARP cuts its dense file uniformly at the global keep rate, not at the learned ones, so "
                "this is not HARP's mask; give its checkpoint.pth.tar with --keep",
                source.path,
            )
        weights = [(layer, tensors.get(layer.tensor("weight"))) for layer in layers.values()]
        return tensors | {layer.tensor("mask"): w != 0 for layer, w in weights if w is not None}
    if source.format in HOW:
        masked = {key.removesuffix("mask") + "weight": key for key in tensors if key.endswith("mask")}
        dense = masked.keys() - {layer.tensor("weight") for layer in layers.values()}
        return tensors | {weight: tensors[weight] * tensors[masked[weight]] for weight in dense if weight in tensors}
    return tensors


def _expected(form: str, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Compute the shape of every tensor that a file of this format and network must have."""
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    for name, layer in maskable_layers(model).items():
        weight = shapes[layer.tensor("weight")]
        if form in SCORES:
            # An option of RLTH's code leaves the last layer dense.
            if form != "rlth" or name != last_linear(model) or layer.tensor("scores") in tensors:
                shapes[layer.tensor("scores")] = weight
            if form == "harp":
                shapes[layer.tensor("rate")] = ()
        elif layer.tensor("mask") in tensors:
            shapes[layer.tensor("mask")] = weight
    return shapes


def _size(
    name: str, option: str, probes: tuple[int, int], tensors: Mapping[str, Tensor], default: int | None
) -> int | None:
    """Find the value of a size option that most of the tensors agree on; the default where none depends on it.

    Two networks that differ in this option alone are compared to see which dimensions depend on it.
    """
    small, large = (_on_meta(name, norm_affine=False, **{option: n}).state_dict() for n in probes)
    votes = []
    for key, tensor in small.items():
        there = tensors.get(key)
        if there is None or there.ndim != tensor.ndim:
            continue
        for first, second, actual in zip(tensor.shape, large[key].shape, there.shape, strict=True):
            ratio, rest = divmod(first, probes[0])
            if first != second and rest == 0 and second == ratio * probes[1] and actual % ratio == 0:
                votes.append(actual // ratio)
    return mode(votes) if votes else default


def _header(
    source: StateDict,
    state: Mapping[str, Tensor],
    described: Mapping[str, Any] | None,
    keep: float | None,
    renamed: str = "",
) -> dict[str, Any]:
    counted = keep is None and source.format not in SCORES
    if keep is not None:
        check_keep(keep)
    elif source.format in SCORES:
        raise InputError("does not say its keep rate; give --keep, the fraction of weights kept")
    else:
        bits = [t for name, t in state.items() if split_kind(name)[1] == "mask"]
        if not bits:
            raise InputError("masks no layer; give a pruned network")
        keep = sum(int(m.sum()) for m in bits) / sum(m.numel() for m in bits)
    how = HOW.get(source.format) or f"masks are the largest {SCORES[source.format]} of each layer"
    return {
        "network": described,
        "dataset": None,
        "method": source.method,
        "keep": keep,
        "keep_is_counted": counted,
        "stage": "prune",
        "epoch": source.epoch,
        "format": source.format,
        "read": f"{source.read}{renamed}; {how}",
    }


def _masks_of_any(tensors: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Select the masks of a network that is not known, in the order of the file."""
    selected = {}
    for name, tensor in tensors.items():
        layer, kind = split_kind(name)
        weight, rate = f"{layer}weight", tensors.get(f"{layer}rate")
        if kind == "mask":
            selected[weight] = tensor
        elif kind == "scores":
            if weight not in tensors or tensors[weight].shape != tensor.shape:
                raise InputError(f"the scores of {layer[:-1]} do not have the shape of its weight; give another file")
            parameter, keep_min = (None, 0.0) if rate is None else (nn.Parameter(rate), 0.1 * keep)
            selected[weight] = ScoreMask(tensor, keep, parameter, keep_min).mask().detach().bool()
    return selected
