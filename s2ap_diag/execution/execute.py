"""Begin a run or go on with it: what ``run``, ``demo`` and every task of a sweep call."""

import logging
import os
from pathlib import Path

import torch

from s2ap_core import distributed
from s2ap_core.config import Config
from s2ap_core.config.parts import held
from s2ap_core.data import Dataset, load
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import write_file
from s2ap_core.files.code import is_code, name_by_user
from s2ap_core.methods import build_method
from s2ap_core.models import check_logits
from s2ap_core.presets.effects import check_effect, without_effect
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import build_network, describe, load_checkpoint
from s2ap_core.runs.course import Until
from s2ap_core.runs.directory import RunDirectory, environment
from s2ap_core.runs.identity import accept_changes, differences, note_config, refusal
from s2ap_core.runs.memory import TRAINED, check_memory
from s2ap_core.training.evaluation import check_attack
from s2ap_core.training.loop import Callback
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.execution.callbacks import SignalCheck, StageProgress
from s2ap_diag.execution.progress import plain_progress
from s2ap_diag.execution.run_log import run_log
from s2ap_diag.execution.tensorboard import TensorBoard, check_installed

log = logging.getLogger(__name__)

NUMERICAL = ("python", "torch", "numpy", "machine", "device", "threads")
"""Entries of ``environment.json`` on which the last bits depend."""


@held()
def execute(
    config: Config | None,
    out: Path,
    *,
    device: str,
    quiet: bool,
    resume: bool,
    force: bool = False,
    data: Dataset | None = None,
    until: Until = "end",
    name: str = "",
    keep_checkpoints: int | None = None,
) -> RunDirectory:
    """Begin a run in the folder ``out``, or go on with the one there, through its stages up to ``until``.

    Everything that the config names is checked first, so that nothing is left behind where it cannot be used.

    Args:
        config: None for the one that the run began with.
        resume: go on where there is a run, instead of refusing.
        force: go on although config, images or code changed; the changes are noted in the run.
        data: the images, where they are loaded already.
        name: what the progress bar calls the run.
        keep_checkpoints: see :class:`s2ap_core.training.stages.Stages`.

    Raises:
        InputError: if the folder exists without ``resume``, or began with another config; as :func:`prepare`, and
            as the stages do.
    """
    if config is not None and not (resume and RunDirectory.begun(out)):
        name_by_user(*config.parts)
        check_dense_network(config)
    data = prepare(config or RunDirectory.open(out).config, data, device)
    with lock.hold(out):
        run = distributed.from_first(lambda: _begin_or_open(config, out, resume, device, force))
        with run_log(run.path), plain_progress(quiet) as progress:
            log.info("%s: %s", run.path, environment(run.config.seed, device))
            callbacks: list[Callback] = [SignalCheck(), StageProgress(progress, run.path, name)]
            callbacks += build_trackers(run.config.tracking)
            if run.config.tracking.tensorboard:
                callbacks.append(TensorBoard(run))
            if force:
                accept_changes(run, data)
            Stages(run, data, device=device, callbacks=callbacks, keep_checkpoints=keep_checkpoints).all(until)
    return run


def check_dense_network(config: Config) -> None:
    """Raise InputError if the dense network that a config starts from is not there, or not one of ours."""
    given = config.pretrain.checkpoint
    if given is None:
        return
    if not os.path.isfile(given):  # unlike Path.is_file, False for names that no file can have
        raise InputError(
            f"pretrain.checkpoint = {given}: no such file; name the dense network by --set pretrain.checkpoint=FILE"
        )
    load_checkpoint(given)


def prepare(config: Config, data: Dataset | None = None, device: str = "cpu") -> Dataset:
    """Load the images that a config names, after checking that everything else it names exists.

    What is to run is what the user asked for: the code that the config names, if any, may run from now on.

    Args:
        data: the images, where they are loaded already.
        device: where the network will be.

    Raises:
        InputError: if there is no such objective, method, metric, network or layer, TensorBoard is asked for and not
            installed, the images cannot be used or have too few classes for the attack, or the network is larger than
            the machine's memory.
    """
    name_by_user(*config.parts)
    build_objective(config.objective)
    method = build_method(config.method)
    build_trackers(config.tracking)
    if config.tracking.tensorboard:
        check_installed()
    if data is None:
        data = load(config.data.name, config.data.root, **config.data.options)
    if config.evaluation.stages:
        check_attack(config.evaluation, data.classes)
    described = describe(config, data, "pretrain", 0)["network"]
    with torch.device("meta"):
        model = build_network(described)
    trains = any(course.epochs(config, stage) for stage in course.trained(config))
    check_memory(described, model, TRAINED if trains else 1, device)
    if is_code(config.network.name):
        with torch.random.fork_rng([]):
            whole = build_network(described)
        check_logits(config.network.name, whole, (data.channels, data.size, data.size), data.classes)
    if "prune" in course.trained(config):
        method.check(model)
    return data


def _begin_or_open(config: Config | None, out: Path, resume: bool, device: str, force: bool) -> RunDirectory:
    """Begin a run, or open one with the config it began with, or with ``force`` another one."""
    if config is not None and not (resume and RunDirectory.begun(out)):
        return RunDirectory.create(out, config, device)
    run = RunDirectory.open(out)
    _warn_of_environment(run, device)
    if config is None or config.model_copy(update={"title": run.config.title}) == run.config:
        check_effect(run.config, without_effect(run.config), str(out / "config.toml"))
        return run
    changes = differences(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
    if not force:
        raise InputError(refusal(out, changes))
    changed = RunDirectory(out, config)
    changed.record_forced(changes)
    write_file(out / "config.toml", config.to_toml())
    note_config(changed)
    return changed


def _warn_of_environment(run: RunDirectory, device: str) -> None:
    """Warn where another machine or library goes on with a run: the result will not be the same bit for bit."""
    began, now = run.environment(), environment(run.config.seed, device)
    changes = [f"{key} {began[key]}, now {now[key]}" for key in NUMERICAL if began.get(key, now[key]) != now[key]]
    if changes:
        log.warning("%s: began with %s: the same up to rounding, not bit for bit", run.path, "; ".join(changes))
