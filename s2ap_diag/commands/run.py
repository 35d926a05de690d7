"""``s2ap-diag run``: pretrain, prune, finetune and evaluate by one config."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from s2ap_core.checkpoints import build_network, describe
from s2ap_core.config import Config, override, read_config
from s2ap_core.data import Dataset, load
from s2ap_core.errors import InputError
from s2ap_core.methods import build_method
from s2ap_core.objectives import build_objective
from s2ap_core.presets import Preset, groups, presets
from s2ap_core.presets.scale import scale_to_digits
from s2ap_core.runs import RunDirectory
from s2ap_core.stages import Callback, Stages
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
from s2ap_diag.tracking import build_trackers


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
@click.option("--seed", type=click.IntRange(min=0), help="Overrides the config's seed.")
@device_option
@quiet_option
def command(
    config: str | None,
    list_presets: bool,
    scale: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    seed: int | None,
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
    check_device(device)
    settings = resolve(config, scale, overrides, seed) if config else None
    if scale and settings and not quiet:
        click.echo(settings.title, err=True)
    out = out or Path("runs") / (Path(str(config)).stem + (f"-{scale}" if scale else ""))
    # Before the run's folder is made: nothing is left behind where these cannot be used.
    if settings and not (resume and out.exists()):
        check_given(settings)
    data = prepare(settings or RunDirectory.open(out).config)
    run = open_run(settings, out, resume, device)
    execute(run, data=data, device=device, quiet=quiet)
    summary = run.results()
    rows: list[list[Any]] = [[stage, *accuracies(summary, stage)] for stage in run.config.evaluation.stages]
    show_table(make_table(f"{out}", ["stage", "clean %", "robust %"], rows), quiet)


def resolve(config: str, scale: str | None, overrides: tuple[str, ...], seed: int | None) -> Config:
    """The settings of a run: the config's, scaled, and what the user sets on top.

    Raises:
        InputError: as :func:`s2ap_core.config.read_config`.
    """
    settings = read_config(config)
    if scale:
        settings = scale_to_digits(settings)
    return override(settings, overrides if seed is None else (*overrides, f"seed={seed}"), config)


def check_given(config: Config) -> None:
    """Raise InputError if the dense network that a config starts from is not there."""
    given = config.pretrain.checkpoint
    if given is not None and not given.is_file():
        raise InputError(
            f"pretrain.checkpoint = {given}: no such file; name the dense network by --set pretrain.checkpoint=FILE"
        )


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


def open_run(config: Config | None, out: Path, resume: bool, device: str) -> RunDirectory:
    """A new run, or one that is resumed with the config it began with.

    Raises:
        InputError: if the folder exists without ``resume``, or began with another config.
    """
    if not (resume and out.exists()):
        if config is None:
            raise InputError(f"{out}: no run to resume; name a CONFIG")
        return RunDirectory.create(out, config, device)
    run = RunDirectory.open(out)
    if config is not None and config != run.config:
        ours, theirs = flat(config.model_dump(mode="json")), flat(run.config.model_dump(mode="json"))
        key = next(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise InputError(
            f"{out}: began with {key} = {theirs.get(key)}, now {ours.get(key)}; use another --out, or drop the change"
        )
    return run


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


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


def execute(run: RunDirectory, *, device: str, quiet: bool, name: str = "", data: Dataset | None = None) -> None:
    """All stages of a run, tracked as its config says; ``data`` are the config's images if loaded already."""
    with plain_progress(quiet) as progress:
        callbacks: list[Callback] = [StageProgress(progress, name)]
        callbacks += build_trackers(run.config.tracking)
        Stages(run, data or prepare(run.config), device=device, callbacks=callbacks).all()


def accuracies(results: dict[str, Any], stage: str) -> list[float | None]:
    """Clean and robust accuracy of a stage in percent, None where it was not evaluated."""
    found = results.get(f"evaluate-{stage}", {})
    return [100 * found[key] if key in found else None for key in ("clean_accuracy", "robust_accuracy")]
