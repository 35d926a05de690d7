"""``s2ap-diag run``: pretrain, prune, finetune and evaluate by one config."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from s2ap_core import distributed
from s2ap_core.config import Config
from s2ap_core.errors import InputError, printable
from s2ap_core.presets.compose import Preset, groups, presets
from s2ap_core.presets.read import read_run
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.execute import execute
from s2ap_diag.execution.launch import arguments, launch
from s2ap_diag.execution.signals import resumable
from s2ap_diag.output.tables import Table, accuracies, count, make_table, show_table


def run_command(
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
    """Run a config, or list presets."""
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
            click.echo(printable(settings.title), err=True)
        run = execute(
            settings, out, device=device, quiet=quiet, resume=resume, force=force, keep_checkpoints=keep_checkpoints
        )
    summary = run.results()
    rows: list[list[Any]] = [[stage, *accuracies(summary, stage)] for stage in run.config.evaluation.stages]
    show_table(make_table(f"{out}", ["stage", "clean %", "robust %"], rows), quiet)


def resolve(config: str, scale: str | None, overrides: tuple[str, ...], seed: int | None) -> Config:
    """Read the settings of a run: the config's, scaled, and what the user sets on top.

    Raises:
        InputError: as :func:`s2ap_core.presets.read.read_config`.
    """
    return read_run(config, scale, overrides if seed is None else (*overrides, f"seed={seed}"))


def overview() -> Table:
    """List the presets by the table of the paper that they belong to, many to a row."""
    plain = [preset for preset in presets().values() if not preset.grouped]
    rows: list[list[Any]] = [["", preset.name, 1, preset.what] for preset in plain]
    for group in groups():
        runs = [*group.combinations(group.axes["arm"]), *group.combinations(group.beside)]
        rows.append(["".join(map(str, group.numbers)), group.pattern, len(runs), group.what])
    title = f"{len(presets())} presets; `s2ap-diag run --list PATTERN` describes those that match"
    return make_table(title, ["table", "presets", "runs", "what they are"], rows)


def matching(pattern: str) -> Table:
    """List the presets that match a pattern, one to a row.

    Raises:
        InputError: if none does.
    """
    matches = [preset for preset in presets().values() if _matches(preset, pattern)]
    if not matches:
        raise InputError(f"--list {pattern}: no preset matches; `s2ap-diag run --list` shows them all")
    return make_table(count(len(matches), "preset"), ["preset", "what it is"], [[p.name, p.title] for p in matches])


def _matches(preset: Preset, pattern: str) -> bool:
    if any(character in pattern for character in "*?["):
        return fnmatchcase(preset.name, pattern)
    return pattern in preset.name or pattern in {f"table{number}" for number in preset.tables + preset.beside}
