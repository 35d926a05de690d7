"""``s2ap-diag run``: pretrain, prune, finetune and evaluate by one config."""

from pathlib import Path
from typing import Any

import click

from s2ap_core.config import Config, presets, read_config
from s2ap_core.data import load
from s2ap_core.errors import InputError
from s2ap_core.runs import RunDirectory
from s2ap_core.stages import Callback, Stages
from s2ap_diag.commands._common import (
    EXISTING,
    StageProgress,
    check_device,
    device_option,
    emit,
    make_table,
    plain_progress,
    quiet_option,
)
from s2ap_diag.tracking import build_trackers


@click.command(name="run")
@click.argument("config", required=False)
@click.option("--list", "list_presets", is_flag=True, help="List the presets.")
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
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
    seed: int | None,
    device: str,
    quiet: bool,
) -> None:
    """Run CONFIG, a TOML file or a preset's name, through all its stages."""
    if list_presets:
        listed = [[name, read_config(name).title] for name in presets()]
        emit([], make_table("Presets", ["preset", "what it is"], listed))
        return
    if config is None and not (resume and out):
        raise click.UsageError("name a CONFIG or preset, or --resume --out RUN")
    check_device(device)
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    out = out or Path("runs") / Path(str(config)).stem
    run = open_run(read_config(config, overrides) if config else None, out, resume, device)
    execute(run, device=device, quiet=quiet)
    summary = run.results()
    rows: list[list[Any]] = [[stage, *accuracies(summary, stage)] for stage in run.config.evaluation.stages]
    emit([], make_table(f"{out}", ["stage", "clean %", "robust %"], rows), quiet=quiet)


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


def execute(run: RunDirectory, *, device: str, quiet: bool, name: str = "") -> None:
    """All stages of a run, tracked as its config says."""
    settings = run.config.data
    data = load(settings.name, settings.root, **settings.options)
    with plain_progress(quiet) as progress:
        callbacks: list[Callback] = [StageProgress(progress, name)]
        callbacks += build_trackers(run.config.tracking)
        Stages(run, data, device=device, callbacks=callbacks).all()


def accuracies(results: dict[str, Any], stage: str) -> list[float | None]:
    """Clean and robust accuracy of a stage in percent, None where it was not evaluated."""
    found = results.get(f"evaluate-{stage}", {})
    return [100 * found[key] if key in found else None for key in ("clean_accuracy", "robust_accuracy")]
