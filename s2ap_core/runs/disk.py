"""The disk space of a run, computed before it starts."""

import json
import logging
import math
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from s2ap_core.config import Config, MethodSettings, StageSettings
from s2ap_core.errors import InputError
from s2ap_core.masks.masking import masks, scores
from s2ap_core.masks.state import plain_state_dict
from s2ap_core.methods import METHODS, build_method
from s2ap_core.models import NETWORKS
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import Images, build_network, describe_network
from s2ap_core.runs.directory import RunDirectory
from s2ap_core.runs.memory import check_memory, megabytes, size

log = logging.getLogger(__name__)


HEADERS = 20_000
"""Bytes of a tensor file besides its tensors: names, shapes, the JSON header."""


@dataclass(frozen=True)
class _Bytes:
    """Bytes of the tensors that a run's files hold.

    Attributes:
        dense: the network without masks.
        trained: its parameters.
        pruned: the network with its scores or masks.
        scores: its scores.
        entries: its masks, a byte for each entry.
        packed: its masks, packed to a bit for each entry.
    """

    dense: int
    trained: int
    pruned: int
    scores: int
    entries: int
    packed: int


def check_space(
    run: RunDirectory, images: Images, keep_checkpoints: int | None = None, until: course.Until = "end"
) -> None:
    """Log what the run still needs on disk, and refuse what will not fit.

    Raises:
        InputError: with the bytes needed and free.
    """
    there = sum(file.stat().st_size for file in run.path.rglob("*.safetensors"))
    needed = max(0, bytes_of_run(run.config, images, keep_checkpoints, until) - there)
    free = shutil.disk_usage(run.path).free
    log.info("needs about %s more on disk, %s are free", megabytes(needed), megabytes(free))
    if needed > free:
        raise InputError(
            f"{run.path}: needs about {megabytes(needed)} more, but {megabytes(free)} are free; "
            "free space, choose another --out, or keep fewer epochs by --keep-checkpoints"
        )


def bytes_of_run(
    config: Config, images: Images, keep_checkpoints: int | None = None, until: course.Until = "end"
) -> int:
    """Count the bytes that a run needs at most, until it ends.

    A file is written beside the one that it replaces, which is one file more than :func:`files_of_run` counts.
    """
    files = files_of_run(config, images, keep_checkpoints, until)
    return sum(files.values()) + max(files.values())


def files_of_run(
    config: Config, images: Images, keep_checkpoints: int | None = None, until: course.Until = "end"
) -> dict[Path, int]:
    """Count the bytes of a run's checkpoints, masks and states when it has ended, by path in its folder.

    Args:
        config: the run's.
        images: classes and size shape the network.
        keep_checkpoints: checkpoints of the search's epochs that are kept; None is all.
        until: where the run ends.

    Raises:
        InputError: as :func:`s2ap_core.runs.memory.check_memory`.
    """
    run, size = RunDirectory(Path(), config), _bytes(config, images)
    stages = course.trained(config, until)
    files = {run.checkpoint("pretrain"): size.dense}
    if course.epochs(config, "pretrain"):
        files[run.state("pretrain")] = size.dense + size.trained * _moments(config.pretrain)
    if "prune" in stages:
        end = course.epochs(config, "prune", until=until).stop  # behind the last epoch; epoch 0 is before the search
        kept = end if keep_checkpoints is None else min(end, keep_checkpoints)
        files |= {run.checkpoint(f"prune-epoch-{epoch:03d}"): size.pruned for epoch in range(end - kept, end)}
        files |= {run.masks(epoch): size.packed for epoch in range(end)}
        files[run.checkpoint("prune-best")] = size.pruned
        copies = 0 if end == 1 else _moments(config.prune) + config.minimizer.carry  # and z
        if config.tracking.every and config.tracking.recipe == "warm":  # the vectors that readings go on from
            copies += len(course.batch_norm_modes(config)) * len(config.tracking.spectrum)
        files[run.state("prune")] = size.pruned + size.scores * copies
    if "finetune" in stages:
        files[run.checkpoint("finetune-best")] = size.dense + size.entries
        files[run.state("finetune")] = size.dense + size.entries + size.trained * _moments(config.finetune)
    return {file: tensors + HEADERS for file, tensors in files.items()}


def _moments(settings: StageSettings) -> int:
    """Count the numbers that the optimizer keeps of each trained parameter: its momentum, for AdamW two moments."""
    return 2 if settings.optimizer == "adamw" else 1


def files_taken_over(config: Config, images: Images, since: course.Until, minimizer: str) -> set[Path]:
    """Name the files that a run links from the beginning that it takes over, instead of writing its own.

    Args:
        since: where the beginning ends.
        minimizer: the beginning's. Where it is not the run's, files that name it are written anew; so are files that
            later epochs replace.
    """
    files = set(files_of_run(config, images, until=since))
    if since == "warmup":
        run = RunDirectory(Path(), config)
        files -= {run.checkpoint("prune-best"), run.state("prune")}
        if minimizer != config.minimizer.name:
            files &= set(files_of_run(config, images, until="pretrain"))
    return files


def _bytes(config: Config, images: Images) -> _Bytes:
    # How many weights are kept changes values but no shapes: runs that differ in it alone are counted once.
    method = config.method.model_copy(update={"keep": 0.5})
    factories = NETWORKS.find(config.network.name), METHODS.find(method.name)
    return _count(json.dumps(describe_network(config, images)), method.model_dump_json(), factories)


@lru_cache(maxsize=256)
def _count(network: str, method: str, factories: object) -> _Bytes:
    """Build the network for its tensors' sizes; ``factories`` are part of the key: a name may be registered anew."""
    del factories
    described = json.loads(network)
    chosen = build_method(MethodSettings.model_validate_json(method))
    chosen.image_shape = (described["input_channels"], described["input_size"], described["input_size"])
    with torch.device("meta"):
        check_memory(described, build_network(described))
    with torch.random.fork_rng([]):
        model = build_network(described)
        dense, trained = size(model.state_dict().values()), size(model.parameters())
        chosen.attach(model, torch.Generator())
    entries = [mask.numel() for mask in masks(model).values()]
    return _Bytes(
        dense=dense,
        trained=trained,
        pruned=size(plain_state_dict(model).values()),
        scores=size(scores(model).values()),
        entries=sum(entries),
        packed=sum(math.ceil(count / 8) for count in entries),
    )
