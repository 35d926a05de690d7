"""Checkpoints of HYDRA, HARP, robust scratch tickets (RLTH) and torch.nn.utils.prune, as they are.

The format is recognised from the keys. Files are pickles of a state dict, alone or under ``state_dict``,
or safetensors without our header; a pickle may hold tensors and plain values, and nothing that could run.
"""

import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import mode
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from s2ap_core.arrays import check_unpacked_size
from s2ap_core.checkpoints import Checkpoint, build_network, fill
from s2ap_core.errors import InputError
from s2ap_core.models import NETWORKS
from s2ap_core.scores import ScoreMask, check_keep, maskable_layers, masks

log = logging.getLogger(__name__)

T = TypeVar("T")


def _number_type(name: object, *_: object) -> np.dtype[Any]:
    """``numpy.dtype`` for numbers alone: ``V2000000000`` would be a type of two gigabytes."""
    if not (isinstance(name, str) and re.fullmatch(r"[<>|=]?[biuf]\d", name)):
        raise pickle.UnpicklingError(f"a numpy type that is no number: {name!r:.40}")
    return np.dtype(name)


# The published schedulers leave a numpy float in the optimizer's lr, under the name of their numpy's time.
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_number_type, "numpy.dtype"),
    np.dtypes.Float64DType,
]

PREFIXES = ("module.basic_model.", "basic_model.", "module.")
SCORES = {"hydra": "popup_scores", "harp": "popup_scores", "rlth": "scores"}
"""What each tool calls a layer's scores."""

_PLAIN = {"popup_scores": "scores", "k_score": "rate"}
_LAYER_TENSORS = ("weight", "weight_orig", "weight_mask", "popup_scores", "scores", "k_score")


@dataclass(frozen=True)
class StateDict:
    """What another tool's file holds.

    Attributes:
        format: hydra, harp, rlth, torch-prune, or dense: plain tensors alone.
        method: the format, for a dense file what wrote it, None where nothing says so.
        tensors: under our plain names: ``conv1.weight``, ``.scores``, ``.rate``, ``.mask``.
        epoch: as the file says it, else None.
    """

    path: Path
    format: str
    method: str | None
    tensors: dict[str, Tensor]
    epoch: int | None


def read_foreign(
    path: Path,
    *,
    network: str | None = None,
    dataset: str | None = None,
    keep: float | None = None,
    width: int | None = None,
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """A model from another tool's checkpoint, with its masks, in eval mode.

    Scores become score masks, with HARP's rates where there are; ``weight_mask`` becomes a fixed mask, and
    so do the nonzero weights of a dense file.

    Args:
        path: the file.
        network: a key of NETWORKS, for a file whose keys fit none or several of them.
        dataset: goes into the header.
        keep: fraction kept; files with scores do not say it.
        width: of the network; None takes it from the shapes.
        device: where the model is put.

    Raises:
        InputError: if the file is missing, damaged, holds more than tensors and plain values, does not say
            what it must, or does not fit its network; the line names the first tensor that does not.
    """
    found = read_state(path)
    try:
        described, state = _fit(found, network, width)
        header = _header(found, state, described, keep) | {"dataset": dataset}
        model = build_network(described)
        fill(model, state, header["keep"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Checkpoint(path, model.to(device).eval(), header)


def foreign_masks(
    found: StateDict, *, network: str | None = None, keep: float | None = None, width: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Boolean masks by weight name (``conv1.weight``) and the header, without building the network.

    Where no network is named and none is recognised, every layer with scores or a mask counts.

    Raises:
        InputError: as :func:`read_foreign`.
    """
    try:
        if network is None and recognise(found.tensors) is None and found.format != "dense":
            header = _header(found, found.tensors, None, keep)
            return _masks_of_any(found.tensors, header["keep"]), header
        described, state = _fit(found, network, width)
        header = _header(found, state, described, keep)
        return masks_without_weights(described, state, header["keep"]), header
    except InputError as error:
        raise InputError(f"{found.path}: {error}") from error


def masks_without_weights(described: Mapping[str, Any], state: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """The boolean masks of a state dict under plain names, in the order of the network that a header describes.

    Raises:
        InputError: if names or shapes do not fit the network, or scores hold NaN.
    """
    with torch.device("meta"):
        model = build_network(described)
    selecting = (".scores", ".rate", ".keep", ".group", ".mask")
    fill(model, {n: t if n.endswith(selecting) else t.to("meta") for n, t in state.items()}, keep)
    return masks(model)


def is_safetensors(path: Path) -> bool:
    """Whether the file is a safetensors file by its name or by its first bytes.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from error


def read_state(path: Path) -> StateDict:
    """The tensors of a file and its format, before any network is asked for.

    Raises:
        InputError: if the file is missing, damaged, holds more than tensors and plain values, or no tensors;
            if only some of its keys carry a prefix, or a mask is incomplete.
    """
    content = _read_safetensors(path) if is_safetensors(path) else _unpickle(path)
    envelope = content if isinstance(content, Mapping) else {}
    inner = envelope.get("state_dict", envelope)
    inner = inner if isinstance(inner, Mapping) else {}
    raw = {key: t for key, t in inner.items() if isinstance(key, str) and isinstance(t, Tensor)}
    if not raw:
        raise InputError(f"{path}: holds no state dict; give a file with named tensors")
    if unusual := [key for key, tensor in raw.items() if not _is_usual(tensor)]:
        raise InputError(f"{path}: {unusual[0]} is no plain tensor of real numbers; save it dense, on the CPU")
    try:
        raw = without_prefix({key: t.float() if t.is_floating_point() else t for key, t in raw.items()})
        form = _format(raw)
        tensors = _plain(raw, form)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    learned = {n: t for n, t in tensors.items() if n.rpartition(".")[2] in ("scores", "rate")}
    for name, tensor in learned.items():
        if not tensor.is_floating_point() or not tensor.numel():
            raise InputError(f"{path}: {_file_name(name, form)} holds no real numbers; give another file")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {_file_name(name, form)} holds NaN or infinity; give an earlier epoch")
    method: str | None = form
    if form == "dense":
        # HARP's writer leaves the rates in its dense file. "sharpness" must not count as a hint.
        of_harp = _has(raw, "k_score") or re.search(r"(?<![a-z])harp(?![a-z])", str(path).lower())
        method = "harp" if of_harp else "hydra" if "arch" in envelope else None
    epoch = envelope.get("epoch")
    return StateDict(path, form, method, tensors, epoch if isinstance(epoch, int) else None)


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """The one network with nearly all of its names, and no other layers, among these; else None."""
    fitting = []
    for name in NETWORKS:
        model = _on_meta(name, norm_affine=False)
        names = model.state_dict().keys()
        if len(names & tensors.keys()) >= 0.9 * len(names) and not _unknown_layers(model, tensors):
            fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


# --- from the file to plain names ---


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error


def _unpickle(path: Path) -> object:
    try:
        check_unpacked_size(path)
        with safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: they load, or are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        refused = re.search(r"(?:GLOBAL|<class|<built-in function|<function) '?([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise InputError(
                f"{path}: refused, the pickle asks for {refused[1]}, which is neither a tensor nor a plain "
                "value; save the state dict alone"
            ) from error
        raise InputError(
            f"{path}: truncated, or not a checkpoint that torch.load reads; copy or make it again"
        ) from error


def without_prefix(raw: Mapping[str, T]) -> dict[str, T]:
    """The entries without the prefix that wrappers put before every name of the network.

    Raises:
        InputError: if only some layers carry it.
    """
    prefix = next((p for p in PREFIXES if any(key.startswith(p) for key in raw)), "")
    bare = [key for key in raw if not key.startswith(prefix) and key.rpartition(".")[2] in _LAYER_TENSORS]
    if bare:
        raise InputError(f"some keys start with {prefix!r}, {bare[0]} does not; save one network's state dict")
    return {key.removeprefix(prefix): entry for key, entry in raw.items() if key.startswith(prefix)}


def _is_usual(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, in memory, and of no more entries than its file has numbers for."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_complex())
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _has(raw: Mapping[str, Tensor], kind: str) -> bool:
    return any(key.rpartition(".")[2] == kind for key in raw)


def _format(raw: Mapping[str, Tensor]) -> str:
    if _has(raw, "weight_orig"):
        return "torch-prune"
    if _has(raw, "popup_scores"):
        return "harp" if _has(raw, "k_score") else "hydra"
    return "rlth" if _has(raw, "scores") else "dense"


def _plain(raw: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for key, tensor in raw.items():
        layer, dot, last = key.rpartition(".")
        if form == "torch-prune" and last.endswith(("_orig", "_mask")):
            parameter = key.removesuffix("_orig").removesuffix("_mask")
            if parameter not in plain:
                plain |= _pruned(raw, parameter)
        elif not (form == "dense" and last == "k_score"):
            plain[f"{layer}{dot}{_PLAIN.get(last, last)}"] = tensor
    return plain


def _pruned(raw: Mapping[str, Tensor], parameter: str) -> dict[str, Tensor]:
    """What torch.nn.utils.prune made of one parameter: a mask for a weight matrix or filter, else its product."""
    original, mask = f"{parameter}_orig", f"{parameter}_mask"
    for there, absent in ((original, mask), (mask, original)):
        if absent not in raw:
            raise InputError(f"has {there} but no {absent}; save the whole state dict")
    if raw[mask].shape != raw[original].shape or not is_binary(raw[mask]):
        raise InputError(f"{mask} is not a mask of 0 and 1 of the shape of {original}; save it again")
    if parameter.endswith("weight") and raw[original].ndim in (2, 4):
        return {parameter: raw[original], f"{parameter.removesuffix('weight')}mask": raw[mask].bool()}
    return {parameter: raw[original] * raw[mask]}


def is_binary(tensor: Tensor) -> bool:
    """Whether all entries are 0 or 1."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


# --- from plain names to a network ---


def _on_meta(name: str, **options: Any) -> nn.Module:
    """The network without memory for its tensors: names and shapes alone; not to be changed."""
    return _cached_on_meta(name, NETWORKS.get(name), tuple(options.items()))


@lru_cache(maxsize=64)
def _cached_on_meta(name: str, factory: object, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    del factory  # a part of the key: a name may be registered anew
    with torch.device("meta"):
        return build_network({"name": name, **dict(options)})


def _unknown_layers(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Layers within the network's own parts that it lacks. Parts it has not at all (``sub_block1``) are extras."""
    parts = {name for name, _ in model.named_children()}
    known = {name for name, _ in model.named_modules()}
    layers = (key.removesuffix(".weight") for key in tensors if key.endswith(".weight"))
    return [layer for layer in layers if layer.partition(".")[0] in parts and layer not in known]


def _fit(found: StateDict, network: str | None, width: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header's description of the network, and the tensors that belong to it, names and shapes checked."""
    name = network or recognise(found.tensors)
    if name is None:
        raise InputError(f"does not say its network; give --network, one of {', '.join(NETWORKS)}")
    bare = _on_meta(name, norm_affine=False)
    tensors = _with_linear_head(found.tensors, bare) if found.format == "rlth" else found.tensors
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
    model = _on_meta(**described)
    tensors = _with_masks(found, tensors, model)
    shapes = _expected(found.format, tensors, model)
    for key, shape in shapes.items():
        theirs = _file_name(key, found.format)
        if key not in tensors:
            raise InputError(f"lacks {theirs}, which {name} has; give a whole checkpoint or another --network")
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"{theirs} has shape {list(tensors[key].shape)}, {name} has {list(shape)}; "
                "give another --network or a file of this network"
            )
    return described, {key: tensors[key] for key in shapes}


def _with_masks(found: StateDict, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors with a mask for each layer that has one, and for no layer that the network keeps dense."""
    layers = maskable_layers(model)
    if found.format == "dense":
        if found.method == "harp":
            log.warning(
                "%s: HARP cuts its dense file uniformly at the global keep rate, not at the learned ones, so "
                "this is not HARP's mask; give its checkpoint.pth.tar with --keep",
                found.path,
            )
        weights = {layer: tensors.get(f"{layer}.weight") for layer in layers}
        return tensors | {f"{layer}.mask": w != 0 for layer, w in weights.items() if w is not None}
    if found.format == "torch-prune":
        masked = [key.removesuffix(".mask") for key in tensors if key.endswith(".mask")]
        dense = [layer for layer in masked if layer not in layers]
        return tensors | {f"{n}.weight": tensors[f"{n}.weight"] * tensors[f"{n}.mask"] for n in dense}
    return tensors


def _expected(form: str, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a file of this format and network must have."""
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    for layer in maskable_layers(model):
        weight = shapes[f"{layer}.weight"]
        if form in SCORES:
            # An option of RLTH's code leaves the last layer dense.
            if form != "rlth" or layer != _head(model) or f"{layer}.scores" in tensors:
                shapes[f"{layer}.scores"] = weight
            if form == "harp":
                shapes[f"{layer}.rate"] = ()
        elif f"{layer}.mask" in tensors:
            shapes[f"{layer}.mask"] = weight
    return shapes


def _file_name(key: str, form: str) -> str:
    layer, dot, last = key.rpartition(".")
    names = {"scores": SCORES.get(form, ""), "rate": "k_score", "mask": "weight_mask"}
    return f"{layer}{dot}{names.get(last, last)}"


def _size(
    name: str, option: str, probes: tuple[int, int], tensors: Mapping[str, Tensor], default: int | None
) -> int | None:
    """The value of a size option that most of the tensors agree on; the default where none depends on it.

    Two networks that differ in this option alone tell which dimensions grow with it.
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


def _head(model: nn.Module) -> str:
    """The last Linear layer, which gives the logits."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]


def _with_linear_head(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """RLTH's code ends its networks in a 1x1 convolution ``fc`` without bias: the same as a Linear layer."""
    weight = tensors.get("fc.weight")
    if weight is None or weight.shape[2:] != (1, 1):
        return dict(tensors)
    head = _head(model)
    renamed = {re.sub(r"^fc\.", f"{head}.", key): tensor for key, tensor in tensors.items()}
    kinds = [kind for kind in ("weight", "scores") if f"fc.{kind}" in tensors and tensors[f"fc.{kind}"].dim() > 1]
    flat = {f"{head}.{kind}": tensors[f"fc.{kind}"].flatten(1) for kind in kinds}
    return {f"{head}.bias": weight.new_zeros(len(weight)), **renamed, **flat}


def _header(
    found: StateDict, state: Mapping[str, Tensor], described: Mapping[str, Any] | None, keep: float | None
) -> dict[str, Any]:
    if keep is not None:
        check_keep(keep)
    elif found.format in SCORES:
        raise InputError("does not say its keep rate; give --keep, the fraction of weights kept")
    else:
        bits = [t for name, t in state.items() if name.rpartition(".")[2] == "mask"]
        if not bits:
            raise InputError("masks no Conv2d or Linear layer; give a pruned network")
        keep = sum(int(m.sum()) for m in bits) / sum(m.numel() for m in bits)
    return {
        "network": described,
        "dataset": None,
        "method": found.method,
        "keep": keep,
        "stage": "prune",
        "epoch": found.epoch,
        "format": found.format,
    }


def _masks_of_any(tensors: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """The masks of a network that is not known, in the order of the file."""
    found = {}
    for name, tensor in tensors.items():
        layer, dot, last = name.rpartition(".")
        weight, rate = f"{layer}{dot}weight", tensors.get(f"{layer}{dot}rate")
        if last == "mask":
            found[weight] = tensor
        elif last == "scores":
            if weight not in tensors or tensors[weight].shape != tensor.shape:
                raise InputError(f"the scores of {layer} do not have the shape of its weight; give another file")
            parameter, keep_min = (None, 0.0) if rate is None else (nn.Parameter(rate), 0.1 * keep)
            found[weight] = ScoreMask(tensor, keep, parameter, keep_min).mask().detach().bool()
    return found
