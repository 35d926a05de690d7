"""Read the settings of a run: a TOML file, or a preset, with overrides on top."""

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from s2ap_core.config import Config, parse_config
from s2ap_core.errors import InputError, did_you_mean
from s2ap_core.files.code import name_by_user
from s2ap_core.files.record import parse_toml
from s2ap_core.presets.compose import presets
from s2ap_core.presets.effects import at_default, check_effect, without_effect
from s2ap_core.presets.scale import scale_to_digits

UNTITLED = ("data.root", "data.options", "tracking.", "compute.", "distributed.")
"""Settings that no title speaks of."""

TABLES = r" \((beside )?Tables? [\d, ]+\)"
"""What a preset's title says of the tables that it belongs to."""


def read_config(
    source: str | Path, overrides: tuple[str, ...] = (), *, change: Callable[[Config], Config] = lambda config: config
) -> Config:
    """Read the settings of a TOML file or preset, with ``a.b=value`` overrides on top.

    What the file or an override sets must have an effect, see :mod:`s2ap_core.presets.effects`. What a preset,
    ``change`` or the file sets and a later one makes void is left at its default.

    Args:
        source: path of a TOML file, or a preset's name.
        overrides: TOML assignments by dotted key; a value that is no TOML is taken as a string.
        change: made before the overrides, such as :func:`s2ap_core.presets.scale.scale_to_digits`, but for the norm.

    Raises:
        InputError: if there is no such file or preset, it is not TOML, a key or value does not fit, or one that is
            set has no effect.
    """
    config, own = read_source(source)
    changed = override(change(in_norm(config, overrides, str(source))), overrides, str(source), own)
    return retitled(changed, config, keys_of(overrides))


def read_run(source: str, scale: str | None, overrides: tuple[str, ...]) -> Config:
    """Read the settings of a run: the config's, scaled to ``digits`` where that is asked for, and overrides on top.

    Raises:
        InputError: as :func:`read_config`.
    """
    return read_config(source, overrides, change=scale_to_digits if scale else lambda full: full)


def read_source(source: str | Path) -> tuple[Config, Iterable[str]]:
    """Read the settings of a file or preset as written, and name those that a file sets without effect.

    Raises:
        InputError: as :func:`read_config`.
    """
    path, known = Path(source), presets()
    if path.is_file():
        config = parse_file(path)
        name_by_user(*config.parts)
        return config, without_effect(config)
    if str(source) in known:
        return parse_config(known[str(source)].settings, str(source)), ()
    hint = did_you_mean(str(source), known, "`s2ap-diag run --list` shows the presets", cutoff=0.8)
    raise InputError(f"{source}: neither a file nor a preset; {hint}")


def parse_file(path: Path) -> Config:
    """Read the settings of a TOML file as they stand there; the code that it names stays unnamed and does not run.

    Raises:
        InputError: if it cannot be read, is not TOML, or a key or value does not fit.
    """
    return parse_config(_read_toml(path), str(path))


def override(config: Config, overrides: tuple[str, ...], source: str, own: Iterable[str] = ()) -> Config:
    """Return a config with ``a.b=value`` overrides on top, as in :func:`read_config`.

    Args:
        own: settings, by dotted key, that ``source`` sets too.

    Raises:
        InputError: if a key or value does not fit or has no effect, naming ``source``.
    """
    config = overridden(config, overrides, source)
    check_effect(config, {*own, *keys_of(overrides)}, source)
    return at_default(config, without_effect(config))


def overridden(config: Config, overrides: tuple[str, ...], source: str) -> Config:
    """Return a config with ``a.b=value`` overrides on top, whether they have an effect or not.

    A radius and a step are of their norm: where an override has another one, they are left at their defaults, unless
    overrides set them too.
    """
    settings = tomllib.loads(config.to_toml())
    if _said_norm(overrides) not in (None, config.objective.norm):
        settings["objective"] = {k: v for k, v in settings["objective"].items() if k not in ("eps", "step")}
        if config.evaluation.norm is None and config.evaluation.eps is not None:  # it followed the training's norm
            settings["evaluation"]["norm"] = config.objective.norm
    for assignment in overrides:
        _override(settings, assignment)
    config = parse_config(settings, source)
    name_by_user(*config.parts)
    return config


def retitled(config: Config, base: Config, keys: Iterable[str]) -> Config:
    """Return a config whose title says which of its settings are others than those that it was given for.

    A table of the paper prints no result of such a run, and is left out.

    Args:
        base: what the title was written for; a config with another title, set on purpose, keeps it.
        keys: the settings, by dotted key, that were set on top of it.
    """
    if not base.title or not config.title.startswith(base.title):
        return config
    now, before = config.model_dump(mode="json"), base.model_dump(mode="json")
    said = []
    for key in sorted(keys):
        section, name = key.split(".", 1)
        if key.startswith(UNTITLED) or now[section].get(name) == before[section].get(name):
            continue
        said.append(f"{key} = {now[section][name]}")
    if not said:
        return config
    return config.model_copy(update={"title": f"{re.sub(TABLES, '', config.title)}, but {', '.join(said)}"})


def in_norm(config: Config, overrides: tuple[str, ...], source: str) -> Config:
    """Return a config in the norm that overrides name, so that what scales it knows which radius it needs."""
    norm = _said_norm(overrides)
    return config if norm is None else overridden(config, (f"objective.norm={norm}",), source)


def _said_norm(overrides: Iterable[str]) -> Any:
    """Read the training's norm that overrides set, None if they set none."""
    objective = _said(overrides).get("objective")
    return objective.get("norm") if isinstance(objective, dict) else None


def _said(overrides: Iterable[str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for assignment in overrides:
        _override(said, assignment)
    return said


def keys_of(overrides: Iterable[str]) -> set[str]:
    """Name the settings, by dotted key, that overrides set."""
    said = _said(overrides)
    return {f"{section}.{name}" for section, values in said.items() if isinstance(values, dict) for name in values}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); give a TOML config") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def _override(settings: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise InputError(f"--set {assignment}: write it as section.key=value")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    except ValueError as error:
        raise InputError(f"--set {key}: {error}; give a shorter value") from error
    *sections, name = key.strip().split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise InputError(f"--set {assignment}: {section} is not a section")
    settings[name] = value
