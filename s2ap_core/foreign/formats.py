"""Recognise who wrote a state dict, and bring it under our plain names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.files.arrays import unpacked_size
from s2ap_core.files.header import is_safetensors
from s2ap_core.files.rehearsal import COPIES, MEMORY
from s2ap_core.foreign.envelope import state_dict_of
from s2ap_core.foreign.layouts import HOW, layout_of, unlaid
from s2ap_core.foreign.names import prefix_of, without_prefix
from s2ap_core.foreign.pickles import is_plain, read_safetensors, unpickle

SCORES = {"hydra": "popup_scores", "harp": "popup_scores", "rlth": "scores"}
"""What each tool calls a layer's scores."""


_PLAIN = {"popup_scores": "scores", "k_score": "rate"}


@dataclass(frozen=True)
class StateDict:
    """What another tool's file holds.

    Attributes:
        format: hydra, harp, rlth, torch-prune, flyingbird, twinrep, mad, or dense: plain tensors alone.
        method: the format, for a dense file what wrote it, None where nothing says so.
        tensors: under our plain names: ``conv1.weight``, ``.scores``, ``.rate``, ``.mask``.
        epoch: as the file says it, else None.
        read: where the tensors lay and what was taken off their names, in words.
    """

    path: Path
    format: str
    method: str | None
    tensors: dict[str, Tensor]
    epoch: int | None
    read: str = "tensors"


def read_state(path: Path) -> StateDict:
    """Read the tensors of a file and its format, before any network is asked for.

    Raises:
        InputError: if the file is missing, damaged, holds more than tensors and plain values, no tensors or two
            networks; if only some of its keys carry a prefix, or a mask is incomplete.
    """
    content = read_safetensors(path) if is_safetensors(path) else unpickle(path)
    envelope = content if isinstance(content, Mapping) else {}
    try:
        raw, where = state_dict_of(content)
        if unusual := [key for key, tensor in raw.items() if not is_plain(tensor)]:
            raise InputError(f"{unusual[0]} is no plain tensor of real numbers; save it dense, on the CPU")
        _check_shared(path, raw)
        prefix = prefix_of(raw)
        raw = without_prefix({key: t.detach().float() if t.is_floating_point() else t for key, t in raw.items()})
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
    read = f"{where}, names without {prefix}" if prefix else where
    known = isinstance(epoch, int) and abs(epoch) < 1 << 31
    return StateDict(path, form, method, tensors, epoch if known else None, read)


def _check_shared(path: Path, raw: Mapping[str, Tensor]) -> None:
    """Refuse tensors that share storages so that each of them by itself takes far more than the file."""
    single = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in raw.values())
    held = unpacked_size(path)
    if single > MEMORY + COPIES * held:
        raise InputError(f"its tensors take {single:,} bytes, of {held:,} that they share; save each of them once")


def _has(raw: Mapping[str, Tensor], kind: str) -> bool:
    return any(key.rpartition(".")[2] == kind for key in raw)


def _format(raw: Mapping[str, Tensor]) -> str:
    if layout := layout_of(raw):
        return layout
    if _has(raw, "popup_scores"):
        return "harp" if _has(raw, "k_score") else "hydra"
    return "rlth" if _has(raw, "scores") else "dense"


def _plain(raw: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    if form in HOW and form not in ("torch-prune", "dense"):
        return unlaid(raw, form)
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
    """Take what torch.nn.utils.prune made of one parameter: a mask for weights of layers, else its product."""
    original, mask = f"{parameter}_orig", f"{parameter}_mask"
    for there, absent in ((original, mask), (mask, original)):
        if absent not in raw:
            raise InputError(f"has {there} but no {absent}; save the whole state dict")
    if raw[mask].shape != raw[original].shape or not is_binary(raw[mask]):
        raise InputError(f"{mask} is not a mask of 0 and 1 of the shape of {original}; save it again")
    if parameter.endswith("weight") and raw[original].ndim >= 2:
        return {parameter: raw[original], f"{parameter.removesuffix('weight')}mask": raw[mask].bool()}
    return {parameter: raw[original] * raw[mask]}


def is_binary(tensor: Tensor) -> bool:
    """Return whether all entries are 0 or 1."""
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _file_name(key: str, form: str) -> str:
    layer, dot, last = key.rpartition(".")
    names = {"scores": SCORES.get(form, ""), "rate": "k_score", "mask": "weight_mask"}
    return f"{layer}{dot}{names.get(last, last)}"
