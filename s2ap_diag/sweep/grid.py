"""What a sweep runs: presets, and lists of values on top of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from s2ap_core.config import Config, parse_config
from s2ap_core.errors import InputError, did_you_mean
from s2ap_core.files.record import parse_toml
from s2ap_core.presets.compose import TABLE_GRIDS, grid_names, presets
from s2ap_core.presets.effects import at_default, check_effect, refusals, without_effect
from s2ap_core.presets.read import in_norm, keys_of, overridden, read_source, retitled
from s2ap_core.presets.scale import scale_to_digits
from s2ap_core.runs.course import digest
from s2ap_diag.sharpness import RHOS

SEEDS = 3
"""Of each run of the paper's tables."""

SEED: TypeAdapter[int] = TypeAdapter(Annotated[int, *Config.model_fields["seed"].metadata])


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(_Settings):
    """How to measure the selected scores after a run, see :class:`s2ap_diag.sharpness.SharpnessSettings`."""

    images: int = Field(default=1024, ge=1)
    batch_size: int = Field(default=128, ge=1)
    rho: list[float] = list(RHOS)
    steps: int = Field(default=20, ge=1)
    restarts: int = Field(default=2, ge=1)


class Combinations(_Settings):
    """All combinations of presets and lists of values.

    Attributes:
        presets: names of presets or TOML files, patterns of names with * or ?, or tables such as ``table9``.
        scale: ``digits`` makes each small, as ``s2ap-diag run --scale`` does.
        set: values by dotted key, for every run of the group.
        values: lists of values by dotted key, each combined with each.
        zip: lists of one length that go in step, first with first, such as a seed and the fold it is tested on; each
            such row is combined with ``values``.
        sharpness: how the selected scores are measured after the run, or false.
    """

    presets: list[str]
    what: str = ""
    scale: Literal["digits"] | None = None
    set: dict[str, Any] = {}
    values: dict[str, list[Any]] = {}
    zip: dict[str, list[Any]] = {}
    sharpness: Measurement | Literal[False] = Measurement()

    @model_validator(mode="after")
    def _zip_goes_in_step(self) -> Self:
        if len({len(values) for values in self.zip.values()}) > 1:
            raise ValueError("the lists of zip go in step: give them one length")
        if both := self.zip.keys() & self.values.keys():
            raise ValueError(f"{min(both)} is in zip and in values: leave it out of one")
        return self

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the values of each run of a preset, by dotted key."""
        steps = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)]
        for values in product(*self.values.values()):
            for step in steps if self.zip else [{}]:
                yield dict(zip(self.values, values, strict=True)) | step


class Grid(_Settings):
    """A TOML file of groups; ``scale`` and ``set`` are for all of them, a group's own values on top."""

    title: str = ""
    scale: Literal["digits"] | None = None
    set: dict[str, Any] = {}
    group: list[Combinations]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid; its name says what it is, and its last part changes with the config."""

    name: str
    config: Config
    sharpness: Measurement | None


def grids() -> dict[str, str]:
    """Name the grids that come with the package, and their titles: each table's, and the files'."""
    titles = {table: f"the runs of Table {table.removeprefix('table')}, {SEEDS} seeds" for table in TABLE_GRIDS}
    return {name: titles.get(name) or _packaged(name).title for name in grid_names()}


def is_grid(source: str) -> bool:
    """Say whether a name or a file is a grid's, and not a run's config."""
    path = Path(source)
    if not path.is_file():
        return source in grid_names() or source in ("table7", "table13")
    try:
        return "group" in parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads it says why it cannot be
        return False


def read_grid(source: str) -> Grid:
    """Read a grid of :func:`grids`, or of a TOML file.

    Raises:
        InputError: if there is none of that name, or the file is not a grid.
    """
    path, known = Path(source), grids()
    if path.is_file():
        try:
            return _parse(path.read_text(encoding="utf-8"), source)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as text ({error}); give a TOML grid") from error
    if source in TABLE_GRIDS:
        return Grid(title=known[source], group=[Combinations(presets=[source], values={"seed": list(range(SEEDS))})])
    if source in known:
        return _packaged(source)
    if source in ("table7", "table13"):
        raise InputError(f"{source}: is read from the runs of table1 and table2; sweep those")
    hint = did_you_mean(source, known, f"choose a TOML file or one of {', '.join(known)}")
    raise InputError(f"{source}: neither a file nor a grid; {hint}")


def expand(grid: Grid, *, scale: str | None = None, overrides: tuple[str, ...] = ()) -> list[PlannedRun]:
    """List the runs of a grid, each once, in its order.

    Args:
        scale: ``digits`` scales all groups.
        overrides: ``a.b=value``, on all runs, on top of the groups' own.

    Raises:
        InputError: if a preset is unknown, or a value does not fit its key or has an effect in none of the runs
            that it is for. In those where it has none it is left at its default.
    """
    planned_runs: dict[str, PlannedRun] = {}
    used: set[tuple[int | None, str]] = set()
    unused: dict[tuple[int | None, str], str] = {}
    for number, group in enumerate(grid.group):
        scaled = bool(scale or group.scale or grid.scale)
        measured = _measured(group.sharpness, scaled)
        of_group = keys_of(_assignments(group.set | group.values | group.zip))
        for preset, chosen, said, void, config in _configs(grid, group, scaled, overrides):
            for key in said:
                # A group's own value is meant for its runs, all others for the runs of all groups.
                place = (number if key in of_group else None, key)
                if key in void:
                    unused.setdefault(place, void[key])
                else:
                    used.add(place)
            named = {key: value for key, value in chosen.items() if key not in void}
            ending = digest(config)
            name = _name(preset, named, config, ending)
            planned_runs.setdefault(ending, PlannedRun(name, config, measured))
    for place, message in unused.items():
        if place not in used:
            raise InputError(message)
    if not planned_runs:
        raise InputError("the grid has no runs: give each list of values at least one")
    return list(planned_runs.values())


def _configs(
    grid: Grid, group: Combinations, scaled: bool, overrides: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any], set[str], dict[str, str], Config]]:
    """Yield each run of a group: preset, its values of the lists, keys that the grid sets, those void, config.

    In the config these are at their defaults.
    """
    shared = _assignments(grid.set | group.set)
    seeded = any(override.partition("=")[0].strip() == "seed" for override in overrides)
    for preset in _presets(group.presets):
        base, own = read_source(preset)
        made: dict[tuple[str, ...], tuple[set[str], dict[str, str], Config]] = {}
        for chosen in group.rows():
            # Nothing but the seed itself depends on a seed, and most runs of a large grid differ in it alone.
            rest = _assignments({key: value for key, value in chosen.items() if key != "seed"})
            if rest in made and not seeded:
                said, void, config = made[rest]
                if "seed" in chosen:
                    config = config.model_copy(update={"seed": _seed(chosen["seed"], preset)})
            else:
                assignments = (*shared, *_assignments(chosen), *overrides)
                prepared = in_norm(base, assignments, preset)
                config = overridden(scale_to_digits(prepared) if scaled else prepared, assignments, preset)
                check_effect(config, own, preset)
                said = keys_of(assignments)
                config = retitled(config, base, said)
                void = refusals(config, said, preset)
                config = at_default(config, without_effect(config))
                made[rest] = said, void, config
            yield preset, chosen, said, void, config


def _seed(value: Any, preset: str) -> int:
    """Check a seed by itself, which takes less than checking all settings."""
    try:
        return SEED.validate_python(value)
    except ValidationError:  # whose message does not name the setting
        return parse_config({"seed": value}, preset).seed


def _measured(asked: Measurement | Literal[False], scaled: bool) -> Measurement | None:
    """Take on digits no more images than there are in a batch: each radius makes twenty passes over them."""
    if asked and scaled:
        return asked.model_copy(update={"images": min(asked.images, asked.batch_size)})
    return asked or None


def _presets(patterns: list[str]) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        chosen = [name for name, preset in presets().items() if preset.matches(pattern)]
        if not chosen and not Path(pattern).is_file():
            raise InputError(f"presets = {pattern}: no such preset or file; `s2ap-diag run --list` shows the presets")
        names |= dict.fromkeys(chosen or [pattern])
    return list(names)


def _name(preset: str, chosen: dict[str, Any], config: Config, ending: str) -> str:
    """Compose a name that is safe for a folder, whatever the values are."""
    said = [f"{key.rpartition('.')[2]}{value}" for key, value in chosen.items() if key != "seed"]
    words = "-".join([Path(preset).stem, *said, f"s{config.seed}"])
    safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in words)
    return f"{safe[:120].lstrip('.')}-{ending}"


def _assignments(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={tomli_w.dumps({'v': value}).partition('=')[2].strip()}" for key, value in values.items())


def _packaged(name: str) -> Grid:
    file = resources.files("s2ap_core.presets") / "grids" / f"{name}.toml"
    return _parse(file.read_text(encoding="utf-8"), name)


def _parse(text: str, source: str) -> Grid:
    try:
        return Grid.model_validate(parse_toml(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{source}: {where}: {first['msg']}; a grid has [[group]] with presets, set, values, zip"
        ) from error
    except ValueError as error:
        raise InputError(f"{source}: not valid TOML: {error}") from error
