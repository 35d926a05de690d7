"""What a run takes on disk, known before it starts."""

import logging
import math
import shutil
from collections.abc import Iterable

import torch
from torch import Tensor

from s2ap_core.checkpoints import build_network, describe
from s2ap_core.config import Config
from s2ap_core.data import Dataset
from s2ap_core.errors import InputError
from s2ap_core.methods import build_method
from s2ap_core.runs import RunDirectory
from s2ap_core.scores import masks, plain_state_dict, scores

log = logging.getLogger(__name__)

HEADERS = 20_000
"""Bytes of a tensor file besides its tensors: names, shapes, the JSON header."""


def check_space(run: RunDirectory, data: Dataset, keep_checkpoints: int | None = None) -> None:
    """Log what the run still needs on disk, and refuse what will not fit.

    Raises:
        InputError: with the bytes needed and free.
    """
    there = sum(file.stat().st_size for file in run.path.rglob("*.safetensors"))
    needed = max(0, bytes_of_run(run.config, data, keep_checkpoints) - there)
    free = shutil.disk_usage(run.path).free
    log.info("needs about %s more on disk, %s are free", megabytes(needed), megabytes(free))
    if needed > free:
        raise InputError(
            f"{run.path}: needs about {megabytes(needed)} more, but {megabytes(free)} are free; "
            "free space, choose another --out, or keep fewer epochs by --keep-checkpoints"
        )


def bytes_of_run(config: Config, data: Dataset, keep_checkpoints: int | None = None) -> int:
    """Bytes of a run's checkpoints, masks and states when all its stages have ended.

    Args:
        config: the run's.
        data: its images; classes and size shape the network.
        keep_checkpoints: checkpoints of the search's epochs that are kept; None is all.
    """
    method = build_method(config.method)
    method.image_shape = (data.channels, data.size, data.size)
    with torch.random.fork_rng([]):
        model = build_network(describe(config, data, "pretrain", 0)["network"])
        trained = size(model.parameters())
        dense = size(model.state_dict().values()) + HEADERS
        method.attach(model, torch.Generator())
    pruned = size(plain_state_dict(model).values()) + HEADERS
    searched = size(scores(model).values())
    entries = [mask.numel() for mask in masks(model).values()]
    packed = sum(math.ceil(count / 8) for count in entries) + HEADERS
    epochs = config.prune.epochs + 1
    kept = epochs if keep_checkpoints is None else min(epochs, keep_checkpoints)
    wanted = set(config.evaluation.stages) or {"prune", "finetune"}
    total = dense
    if config.pretrain.checkpoint is None and method.pretrained:
        total += dense + trained  # the state: the network and the momentum of each parameter
    if wanted & {"prune", "finetune"}:
        carried = searched if config.minimizer.carry else 0
        total += (kept + 1) * pruned + epochs * packed + pruned + searched + carried
        if config.tracking.every and config.tracking.recipe == "warm":  # the vectors that readings go on from
            total += len(config.tracking.batch_norm) * len(config.tracking.spectrum) * searched
    if "finetune" in wanted and method.finetuned:
        total += 2 * (dense + sum(entries)) + trained  # a fixed mask has a byte for each entry
    return total + pruned  # a file is written beside the one that it replaces


def size(tensors: Iterable[Tensor]) -> int:
    """Their bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
