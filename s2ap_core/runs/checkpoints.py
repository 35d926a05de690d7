"""Checkpoints of ours: a network, masked or plain, with a header that says how to build it again."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from s2ap_core.config import Config
from s2ap_core.errors import InputError
from s2ap_core.files.tensors import load_tensors, save_tensors
from s2ap_core.masks.kinds import Layer
from s2ap_core.masks.layers import maskable_layers
from s2ap_core.masks.masking import attach_masks
from s2ap_core.masks.parametrization import ChannelMask, FixedMask, LayerMask, Mask, ScoreMask, UnitMask, check_keep
from s2ap_core.masks.state import KINDS, load_plain_state_dict, mask_tensors, plain_state_dict, selects
from s2ap_core.methods.harp import keep_floor
from s2ap_core.models import build

SIZES = ("classes", "width", "input_size", "input_channels")


LARGEST_SIZE = 1 << 20
"""The largest size that a network may have; products of larger ones may not fit 64 bits."""


_NETWORK_OPTIONS = ("name", *SIZES, "norm_affine", "norm", "options")


_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "objective": dict,
    "method": str,
    "minimizer": str,
    "keep": (int, float),
    "keep_layers": dict,
    "stage": str,
    "epoch": int,
    "seed": int,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model and what its file says of it.

    Attributes:
        header: network, dataset, objective, method, minimizer, keep, seed, stage, epoch, sha256.
    """

    path: Path
    model: nn.Module
    header: dict[str, Any]


class Images(Protocol):
    """What a network has to know of its images: their classes, channels and size."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def channels(self) -> int:
        """Number of channels."""

    @property
    def size(self) -> int:
        """Height and width in pixels."""


def describe_network(config: Config, images: Images) -> dict[str, Any]:
    """Make the ``network`` entry of a header, from which :func:`build_network` builds."""
    return {
        "name": config.network.name,
        "classes": images.classes,
        "width": config.network.width,
        "input_size": images.size,
        "input_channels": images.channels,
        "norm_affine": config.network.norm_affine,
        # Left out where it is not chosen: headers of before have no such entry.
        **({"norm": config.network.norm} if config.network.norm != "batch" else {}),
        **({"options": config.network.options} if config.network.options else {}),
    }


def describe_minimizer(config: Config) -> dict[str, Any]:
    """Make the entries of a header that name the minimizer, and the gamma of one that perturbs scores."""
    minimizer = config.minimizer
    return {"minimizer": minimizer.name, **({"gamma": minimizer.gamma} if minimizer.name == "s2ap" else {})}


def describe(config: Config, data: Images, stage: str, epoch: int) -> dict[str, Any]:
    """Compose the header of a checkpoint or mask file of this run; a dense network has no method and keeps all."""
    dense = stage == "pretrain"
    return {
        "network": describe_network(config, data),
        "dataset": config.data.name,
        **({"fold": config.data.options["fold"]} if "fold" in config.data.options else {}),
        "objective": config.objective.model_dump(mode="json"),
        "method": None if dense else config.method.name,
        **({"minimizer": None} if dense else describe_minimizer(config)),
        "keep": 1.0 if dense else config.method.keep,
        **({"keep_layers": config.method.keep_layers} if config.method.keep_layers and not dense else {}),
        "flops_reduction": None if dense else config.method.flops_reduction,
        "seed": config.seed,
        "stage": stage,
        "epoch": epoch,
    }


def build_network(described: Mapping[str, Any]) -> nn.Module:
    """Build the network that a header's ``network`` entry describes, freshly initialised.

    Raises:
        InputError: if it has entries that no network has, or a size that none can have.
    """
    for option, value in described.items():
        if option not in _NETWORK_OPTIONS:
            raise InputError(f"a network has no {option}, only {', '.join(_NETWORK_OPTIONS)}")
        if option in SIZES and value is not None and not (type(value) is int and value <= LARGEST_SIZE):
            raise InputError(f"network's {option} = {value!r}: give a whole number of at most {LARGEST_SIZE}")
    if not isinstance(described.get("options") or {}, Mapping):
        raise InputError(f"network's options = {described['options']!a}: give a table of options")
    if not isinstance(described.get("name"), str):
        raise InputError(f"network = {described.get('name')!r}: give the name of a network")
    return build(**described)


def save_checkpoint(path: Path, model: nn.Module, header: Mapping[str, Any]) -> None:
    """Write a model under plain names (``conv1.weight``, ``conv1.scores``, ...)."""
    save_tensors(path, plain_state_dict(model), header)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a model of ours, with its masks, in eval mode.

    Raises:
        InputError: if the file is missing, damaged, not a checkpoint, or does not fit its network.
    """
    return build_checkpoint(path, *load_tensors(path), device)


def build_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any], device: torch.device | str = "cpu"
) -> Checkpoint:
    """Build the model, in eval mode, whose tensors and header were read from ``path``.

    Raises:
        InputError: if they are not those of a checkpoint, or do not fit its network.
    """
    if "network" not in header or "keep" not in header:
        raise InputError(f"{path}: not a checkpoint (no network in its header); checkpoints lie in RUN/ckpt")
    try:
        check_header(header)
        _check_sizes(header["network"], tensors)
        model = build_network(header["network"])
        fill(model, tensors, header["keep"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Checkpoint(path, model.to(device).eval(), header)


def check_header(header: Mapping[str, Any]) -> None:
    """Raise InputError unless a header's entries are of the types that :func:`describe` gives them."""
    for entry, kind in _ENTRIES.items():
        value = header.get(entry)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, str) and not value.isprintable())):
            raise InputError(f"its header has {entry} = {value!a}, which none of ours has; make the file again")
    if not isinstance(header.get("network"), Mapping):
        raise InputError("its header says no network; give a checkpoint")
    try:
        json.dumps(header, allow_nan=False)
    except ValueError as error:
        raise InputError("its header holds NaN or infinity; make the file again") from error
    if header.get("keep") is None:
        raise InputError("its header says no keep rate; give a checkpoint")
    for keep in (header["keep"], *(header.get("keep_layers") or {}).values()):
        if not isinstance(keep, int | float):
            raise InputError(f"its header has keep_layers = {header['keep_layers']!a}; make the file again")
        check_keep(keep)


def _check_sizes(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError if the described network's own tensors are not those of the file.

    Checked without memory for the network: a header of a few bytes may describe one of terabytes.
    """
    with torch.device("meta"):
        model = build_network(described)
    for name, tensor in model.state_dict().items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise InputError(
                f"not a checkpoint of this network: {name} has shape {list(tensors[name].shape)}, not "
                f"{list(tensor.shape)}"
            )
        if name not in tensors:
            raise InputError(f"not a checkpoint of this network: it lacks {name}")


def fill(model: nn.Module, state: Mapping[str, Tensor], keep: float) -> None:
    """Mask a plain ``model`` as the plain names of ``state`` say, and load them.

    Raises:
        InputError: if names or shapes do not fit, or scores hold NaN.
    """
    maskable = maskable_layers(model, embeddings=True).items()
    layers = {name for name, layer in maskable if {layer.tensor("scores"), layer.tensor("mask")} & state.keys()}
    tied: dict[int, nn.Parameter] = {}

    def make(name: str, layer: Layer) -> Mask:
        called, weight = {kind: layer.tensor(kind) for kind in KINDS}, layer.weight
        if called["group"] not in state or called["mask"] in state:
            return _mask(called, weight, state, keep)
        channels = [size if dim == layer.input_dim else 1 for dim, size in enumerate(weight.shape)]
        return _channel_mask(called, channels, weight.dtype, state, tied)

    if layers:
        attach_masks(model, make, only=layers)
    load_plain_state_dict(model, state)


@torch.no_grad()
def select_masks(state: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Select the boolean masks of a state dict under plain names, by weight name, without its network.

    Raises:
        InputError: if there is none, if one lacks its weight or does not fit it, if it is of channels, of which the
            network alone says what dimension they are, if scores hold NaN, or if there are tensors of no mask.
    """
    selected: dict[str, Tensor] = {}
    unused = set(filter(selects, state))
    for name in sorted(unused):
        if not name.endswith(("scores", "mask")):
            continue
        layer = re.sub("(scores|mask)$", "", name)
        called = {kind: f"{layer}{kind}" for kind in ("weight", *KINDS)}
        if called["weight"] not in state:
            raise InputError(f"not a checkpoint: it lacks {called['weight']}")
        if called["group"] in state and called["mask"] not in state:
            raise InputError(f"{name} are of channels; name the network that they are of")
        weight = _real(called["weight"], state)
        if weight.dim() < 2 or not weight.numel():
            raise InputError(f"{called['weight']} has shape {list(weight.shape)}, which no masked layer has")
        mask = _mask(called, weight if weight.dtype == torch.float64 else weight.float(), state, keep)
        selected[called["weight"]] = mask.mask().bool()
        unused -= {called[kind] for kind in mask_tensors(mask)}
    if unused:
        raise InputError(f"not a checkpoint of ours: it has unknown {min(unused)}")
    if not selected:
        raise InputError("holds no masks")
    return selected


def _mask(called: Mapping[str, str], weight: Tensor, state: Mapping[str, Tensor], keep: float) -> Mask:
    """Build the mask of a weight's entries from the tensors of these names."""
    if called["mask"] in state:
        _check_shape(called["mask"], state, weight.shape)
        return FixedMask(state[called["mask"]])
    scores = _scores(called["scores"], state, weight.shape, weight.dtype)
    if called["unit"] in state:
        return _unit_mask(called, scores, state, keep)
    rate = _rate(called["rate"], state, weight.dtype)
    if called["keep"] in state:
        return LayerMask(scores, _keep_of_layer(called["keep"], state))
    return ScoreMask(scores, keep, rate, keep_floor(keep) if rate is not None else 0.0)


def _channel_mask(
    called: Mapping[str, str],
    shape: Sequence[int],
    dtype: torch.dtype,
    state: Mapping[str, Tensor],
    tied: dict[int, nn.Parameter],
) -> Mask:
    """Build the mask of a layer's input channels, whose scores are of this shape; ``tied`` are the rates of groups."""
    scores, rate = _scores(called["scores"], state, shape, dtype), _rate(called["rate"], state, dtype)
    for entry in (called["keep"], called["group"]):
        _check_shape(entry, state, ())
    own, group = float(_real(called["keep"], state)), int(state[called["group"]].real)
    check_keep(own)
    if rate is None:
        return ChannelMask(scores, own, group)
    return ChannelMask(scores, own, group, tied.setdefault(group, rate), keep_floor(own))


def _scores(name: str, state: Mapping[str, Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    scores = _real(name, state).to(dtype, copy=True)
    if not scores.isfinite().all():
        raise InputError(f"{name} hold NaN or infinity; restore an earlier epoch")
    _check_shape(name, state, shape)
    return scores


def _rate(name: str, state: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Parameter | None:
    """Read HARP's rate of a layer, None where the layer has none."""
    if name not in state:
        return None
    _check_shape(name, state, ())
    rate = nn.Parameter(_real(name, state).to(dtype, copy=True))
    if not rate.isfinite():
        raise InputError(f"{name} is NaN or infinite; restore an earlier epoch")
    return rate


def _unit_mask(called: Mapping[str, str], scores: Tensor, state: Mapping[str, Tensor], keep: float) -> UnitMask:
    """Build the mask of a layer whose units have a learned keep rate each."""
    unit, rates = called["unit"], called["rate"]
    found = state[unit]
    if found.dtype != torch.int64 or found.dim() != 1 or not len(found):
        raise InputError(
            f"{unit} is {found.dtype} of shape {list(found.shape)}: it names the unit of each run of rows, one or more "
            "numbers in int64; restore the file"
        )
    of_part = found.tolist()
    units = len(set(of_part))
    if set(of_part) != set(range(units)) or len(scores) % len(of_part):
        raise InputError(f"{unit} does not share the layer's {len(scores)} rows out; restore the file")
    _check_shape(rates, state, (units,))
    rate = _real(rates, state).to(scores.dtype, copy=True)
    if not rate.isfinite().all():
        raise InputError(f"{rates} is NaN or infinite; restore an earlier epoch")
    return UnitMask(scores, keep, of_part, nn.Parameter(rate), keep_floor(keep))


def _keep_of_layer(name: str, state: Mapping[str, Tensor]) -> float:
    """Read the keep rate of a layer, which may be 0 where the whole network's is not."""
    _check_shape(name, state, ())
    keep = float(_real(name, state))
    if not 0 <= keep <= 1:  # NaN, too
        raise InputError(f"{name} = {keep}: the fraction of weights kept must lie in [0, 1]; restore the file")
    return keep


def _check_shape(name: str, state: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    if name not in state:
        raise InputError(f"lacks {name}; give a whole checkpoint")
    if tuple(state[name].shape) != tuple(shape):
        raise InputError(f"{name} has shape {list(state[name].shape)}, not {list(shape)}; give a file of this network")


def _real(name: str, state: Mapping[str, Tensor]) -> Tensor:
    if not state[name].is_floating_point():
        raise InputError(f"{name} holds {state[name].dtype}, not real numbers; give a file with float scores")
    return state[name]
