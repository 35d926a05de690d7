"""Checkpoints of ours: a network, masked or plain, with a header that says how to build it again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_core.config import Config
from s2ap_core.data import Dataset
from s2ap_core.errors import InputError
from s2ap_core.methods.harp import keep_floor
from s2ap_core.models import build
from s2ap_core.runs import load_tensors, save_tensors
from s2ap_core.scores import (
    ChannelMask,
    FixedMask,
    ScoreMask,
    attach_masks,
    load_plain_state_dict,
    maskable_layers,
    plain_state_dict,
)


@dataclass(frozen=True)
class Checkpoint:
    """A model and what its file says of it.

    Attributes:
        header: network, dataset, objective, method, minimizer, keep, seed, stage, epoch, sha256.
    """

    path: Path
    model: nn.Module
    header: dict[str, Any]


def describe(config: Config, data: Dataset, stage: str, epoch: int) -> dict[str, Any]:
    """The header of a checkpoint or mask file of this run."""
    return {
        "network": {
            "name": config.network.name,
            "classes": data.classes,
            "width": config.network.width,
            "input_size": data.size,
            "input_channels": data.channels,
            "norm_affine": config.network.norm_affine,
        },
        "dataset": config.data.name,
        "objective": config.objective.model_dump(mode="json"),
        "method": config.method.name,
        "minimizer": config.minimizer.name,
        "keep": config.method.keep,
        "flops_reduction": config.method.flops_reduction,
        "seed": config.seed,
        "stage": stage,
        "epoch": epoch,
    }


def build_network(described: Mapping[str, Any]) -> nn.Module:
    """The network that a header's ``network`` entry describes, freshly initialised."""
    return build(**described)


def save_checkpoint(path: Path, model: nn.Module, header: Mapping[str, Any]) -> None:
    """Write a model under plain names (``conv1.weight``, ``conv1.scores``, ...)."""
    save_tensors(path, plain_state_dict(model), header)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """A model of ours, with its masks, in eval mode.

    Raises:
        InputError: if the file is missing, damaged, not a checkpoint, or does not fit its network.
    """
    tensors, header = load_tensors(path)
    try:
        model = build_network(header["network"])
        keep = float(header["keep"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a checkpoint (no network in its header); checkpoints lie in RUN/ckpt") from error
    try:
        fill(model, tensors, keep)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Checkpoint(path, model.to(device).eval(), header)


def fill(model: nn.Module, state: Mapping[str, Tensor], keep: float) -> None:
    """Mask a plain ``model`` as the plain names of ``state`` say, and load them.

    Raises:
        InputError: if names or shapes do not fit, or scores hold NaN.
    """
    layers = {name for name in maskable_layers(model) if {f"{name}.scores", f"{name}.mask"} & state.keys()}
    tied: dict[int, nn.Parameter] = {}

    def make(name: str, layer: nn.Module) -> ScoreMask | FixedMask:
        if f"{name}.mask" in state:
            return FixedMask(state[f"{name}.mask"])
        scores = state[f"{name}.scores"]
        if not scores.isfinite().all():
            raise InputError(f"{name}.scores hold NaN or infinity; restore an earlier epoch")
        rate = nn.Parameter(state[f"{name}.rate"].clone()) if f"{name}.rate" in state else None
        if f"{name}.group" not in state:
            return ScoreMask(scores.clone(), keep, rate, keep_floor(keep) if rate is not None else 0.0)
        own, group = float(state[f"{name}.keep"]), int(state[f"{name}.group"])
        if rate is None:
            return ChannelMask(scores.clone(), own, group)
        return ChannelMask(scores.clone(), own, group, tied.setdefault(group, rate), keep_floor(own))

    if layers:
        attach_masks(model, make, only=layers)
    load_plain_state_dict(model, state)
