"""``s2ap-diag run``: pretrain, prune, finetune and evaluate by one config."""

import logging
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from s2ap_core import distributed
from s2ap_core.config import Config, override
from s2ap_core.data import Dataset, load
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import write_file
from s2ap_core.methods import build_method
from s2ap_core.presets.compose import Preset, groups, presets
from s2ap_core.presets.read import read_config
from s2ap_core.presets.scale import scale_to_digits
from s2ap_core.runs.checkpoints import build_network, describe, load_checkpoint
from s2ap_core.runs.course import Until
from s2ap_core.runs.directory import RunDirectory, environment
from s2ap_core.runs.identity import accept_changes, differences, refusal
from s2ap_core.training.iteration import Step
from s2ap_core.training.loop import Callback, Loop
from s2ap_core.training.objectives import build_objective
from s2ap_core.training.stages import Stages
from s2ap_diag.commands._common import (
    EXISTING,
    StageProgress,
    check_device,
    device_option,
    make_table,
    plain_progress,
    quiet_option,
    show_table,
)
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.execution.launch import arguments, launch
from s2ap_diag.execution.run_log import run_log
from s2ap_diag.execution.signals import heed, resumable

log = logging.getLogger(__name__)

NUMERICAL = ("python", "torch", "numpy", "machine", "device", "threads")
"""Entries of ``environment.json`` on which the last bits depend."""


@click.command(name="run")
@click.argument("config", required=False)
@click.option(
    "--list",
    "list_presets",
    is_flag=True,
    help="List the presets; with CONFIG those that match it: part of a name, a pattern with * or ?, or table9.",
)
@click.option(
    "--scale",
    type=click.Choice(["digits"]),
    help="Run CONFIG's method and network, narrow and with few epochs, on scikit-learn's digits.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, e.g. method.keep=0.05.",
)
@click.option("--out", type=EXISTING, help="The run directory; default runs/CONFIG.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped.")
@click.option(
    "--force", is_flag=True, help="With --resume: go on although config, images or code changed; it is written down."
)
@click.option(
    "--keep-checkpoints",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the checkpoints of the search's last N epochs besides the selected one; default all. Masks stay.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Overrides the config's seed.")
@click.option("--nproc", type=click.IntRange(min=1), help="Share the work among so many processes of this machine.")
@device_option
@quiet_option
def command(
    config: str | None,
    list_presets: bool,
    scale: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    force: bool,
    keep_checkpoints: int | None,
    seed: int | None,
    nproc: int | None,
    device: str,
    quiet: bool,
) -> None:
    """Run CONFIG, a TOML file or a preset's name, through all its stages."""
    if list_presets:
        show_table(matching(config) if config else overview())
        return
    if config is None and not (resume and out):
        raise click.UsageError("name a CONFIG or preset, or --resume --out RUN")
    if config is None and (scale or overrides or seed is not None):
        raise click.UsageError("a resumed run keeps its settings: --scale, --set and --seed need a CONFIG")
    if force and not resume:
        raise click.UsageError("--force goes with --resume")
    if nproc and distributed.launched():
        raise click.UsageError("torchrun has started the processes: --nproc goes without it")
    if nproc and nproc > 1:
        context = click.get_current_context()
        return launch(arguments(context, without="nproc"), nproc, str(out or config))
    device = check_device(device)
    resume = resume or distributed.restarted()
    out = out or Path("runs") / (Path(str(config)).stem + (f"-{scale}" if scale else ""))
    with resumable(f"s2ap-diag run --resume --out {out}"):
        settings = resolve(config, scale, overrides, seed) if config else None
        if scale and settings and not quiet:
            click.echo(settings.title, err=True)
        # Before the run's folder is made: nothing is left behind where these cannot be used.
        if settings and not (resume and RunDirectory.begun(out)):
            check_given(settings)
        data = prepare(settings or RunDirectory.open(out).config)
        with lock.hold(out):
            run = distributed.from_first(lambda: start(settings, out, resume, device, force))
            execute(run, data=data, device=device, quiet=quiet, force=force, keep_checkpoints=keep_checkpoints)
    summary = run.results()
    rows: list[list[Any]] = [[stage, *accuracies(summary, stage)] for stage in run.config.evaluation.stages]
    show_table(make_table(f"{out}", ["stage", "clean %", "robust %"], rows), quiet)


def resolve(config: str, scale: str | None, overrides: tuple[str, ...], seed: int | None) -> Config:
    """The settings of a run: the config's, scaled, and what the user sets on top.

    Raises:
        InputError: as :func:`s2ap_core.presets.read.read_config`.
    """
    settings = read_config(config)
    if scale:
        settings = scale_to_digits(settings)
    return override(settings, overrides if seed is None else (*overrides, f"seed={seed}"), config)


def check_given(config: Config) -> None:
    """Raise InputError if the dense network that a config starts from is not there, or not one of ours."""
    given = config.pretrain.checkpoint
    if given is None:
        return
    if not os.path.isfile(given):  # unlike Path.is_file, False for names that no file can have
        raise InputError(
            f"pretrain.checkpoint = {given}: no such file; name the dense network by --set pretrain.checkpoint=FILE"
        )
    load_checkpoint(given)


def overview() -> Table:
    """The presets by the table of the paper that they belong to, many to a row."""
    plain = [preset for preset in presets().values() if not preset.tables + preset.beside]
    rows: list[list[Any]] = [["", preset.name, 1, preset.what] for preset in plain]
    for group in groups():
        runs = [*group.cells(group.axes["arm"]), *group.cells(group.beside)]
        rows.append([str(group.table), group.pattern, len(runs), group.what])
    title = f"{len(presets())} presets; `s2ap-diag run --list PATTERN` describes those that match"
    table = make_table(title, ["table", "presets", "runs", "what they are"], rows)
    table.columns[1].no_wrap = True  # names are there to be copied
    return table


def matching(pattern: str) -> Table:
    """The presets that match a pattern, one to a row.

    Raises:
        InputError: if none does.
    """
    found = [preset for preset in presets().values() if _matches(preset, pattern)]
    if not found:
        raise InputError(f"--list {pattern}: no preset matches; `s2ap-diag run --list` shows them all")
    return make_table(f"{len(found)} presets", ["preset", "what it is"], [[p.name, p.title] for p in found])


def _matches(preset: Preset, pattern: str) -> bool:
    if any(character in pattern for character in "*?["):
        return fnmatchcase(preset.name, pattern)
    return pattern in preset.name or pattern in {f"table{number}" for number in preset.tables + preset.beside}


def start(config: Config | None, out: Path, resume: bool, device: str, force: bool = False) -> RunDirectory:
    """A new run, or one that is resumed with the config it began with, or with ``force`` another one.

    Raises:
        InputError: if the folder exists without ``resume``, or began with another config.
    """
    if config is not None and not (resume and RunDirectory.begun(out)):
        return RunDirectory.create(out, config, device)
    run = RunDirectory.open(out)
    warn_of_environment(run, device)
    if config is None or config.model_copy(update={"title": run.config.title}) == run.config:
        return run
    changes = differences(run.config.model_dump(mode="json"), config.model_dump(mode="json"))
    if not force:
        raise InputError(refusal(out, changes))
    run.record_forced(changes)
    write_file(out / "config.toml", config.to_toml())
    return RunDirectory(out, config)


def warn_of_environment(run: RunDirectory, device: str) -> None:
    """Say if another machine or library goes on with a run: the rest is not bit for bit what it would have been."""
    began, now = run.environment(), environment(run.config.seed, device)
    changes = [f"{key} {began[key]}, now {now[key]}" for key in NUMERICAL if began.get(key, now[key]) != now[key]]
    if changes:
        log.warning("%s: began with %s: the same up to rounding, not bit for bit", run.path, "; ".join(changes))


def prepare(config: Config) -> Dataset:
    """The images that a config names, once all else that it names is known to be there.

    Raises:
        InputError: if there is no such objective, method, metric or network, or the images cannot be used.
    """
    build_objective(config.objective)
    build_method(config.method)
    build_trackers(config.tracking)
    data = load(config.data.name, config.data.root, **config.data.options)
    with torch.device("meta"):
        build_network(describe(config, data, "pretrain", 0)["network"])
    return data


class Heeding(Callback):
    """Stops for a signal that something on the way has swallowed."""

    def on_iteration(self, loop: Loop, step: Step) -> None:
        heed()

    def on_evaluated(self, done: int, total: int) -> None:
        heed()


def execute(
    run: RunDirectory,
    *,
    device: str,
    quiet: bool,
    name: str = "",
    data: Dataset | None = None,
    until: Until = "end",
    force: bool = False,
    keep_checkpoints: int | None = None,
) -> None:
    """A run's stages up to one of them, tracked as its config says; ``data`` are the images if loaded already."""
    with run_log(run.path), plain_progress(quiet) as progress:
        log.info("%s: %s", run.path, environment(run.config.seed, device))
        data = data or prepare(run.config)
        callbacks: list[Callback] = [Heeding(), StageProgress(progress, name)]
        callbacks += build_trackers(run.config.tracking)
        if force:
            accept_changes(run, data)
        Stages(run, data, device=device, callbacks=callbacks, keep_checkpoints=keep_checkpoints).all(until)


def accuracies(results: dict[str, Any], stage: str) -> list[float | None]:
    """Clean and robust accuracy of a stage in percent, None where it was not evaluated."""
    found = results.get(f"evaluate-{stage}", {})
    return [100 * found[key] if key in found else None for key in ("clean_accuracy", "robust_accuracy")]
