"""The presets: TOML files of their own, and the runs of the paper's tables, composed from two files.

``paper_settings.toml`` says what the paper's runs are made of, ``paper_tables.toml`` which runs each table
shows. A run's name says what it is: ``cifar10-resnet18-harp-s2ap-90`` has data set, network, method, arm and
sparsity in percent.
"""

import copy
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from itertools import product
from typing import Any

AXES = ("training", "data", "network", "method", "arm", "sparsity", "flops_reduction")
"""What the runs of the tables differ in, in the order in which their names say it."""


FRAGMENTS = ("method", "data", "network", "arm", "training")
"""The axes whose values have settings of their own, later ones on top."""


PAPER = ("paper_settings.toml", "paper_tables.toml")


TABLE_GRIDS = tuple(f"table{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12))
"""The grids of the tables of the paper that are made of runs; 7 and 13 are read from the same ones."""


Combination = Mapping[str, Any]
"""A value for each of :data:`AXES`, None where the axis does not apply."""


@dataclass(frozen=True)
class Preset:
    """A named config.

    Attributes:
        what: what the run is, in words.
        fragments: its settings, as in a run's ``config.toml`` without the title and settings at their default.
        tables: numbers of the paper's tables that print a result of this run.
        beside: numbers of the tables that do not print it, but one of the two arms that it is crossed from.
        grouped: whether it is one of a :class:`Group`'s combinations.
    """

    name: str
    what: str
    fragments: dict[str, Any]
    tables: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    grouped: bool = False

    @property
    def title(self) -> str:
        """What the run is, and the tables that it belongs to."""
        numbers = self.tables or self.beside
        if not numbers:
            return self.what
        named = f"Table{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        return f"{self.what} ({named if self.tables else f'beside {named}'})"

    def matches(self, pattern: str) -> bool:
        """Return whether ``pattern`` is its name, a shell pattern of it, or a table that prints it (``table9``)."""
        return fnmatchcase(self.name, pattern) or pattern in {f"table{number}" for number in self.tables}

    @property
    def settings(self) -> dict[str, Any]:
        """The preset as a config's TOML has it; the caller's own copy."""
        return {"title": self.title, **copy.deepcopy(self.fragments)}


@dataclass(frozen=True)
class Group:
    """A part of a table: all combinations of the values on each axis.

    Attributes:
        table: its number, None for runs that no table shows.
        what: what the table shows of them.
        beside: further arms, which the table does not print.
    """

    table: int | None
    what: str
    axes: Mapping[str, Sequence[Any]]
    beside: Sequence[str]

    def combinations(self, arms: Sequence[str | None]) -> Iterator[Combination]:
        """List the combinations of these arms, a run each."""
        for values in product(*({**self.axes, "arm": arms}[axis] for axis in AXES)):
            yield dict(zip(AXES, values, strict=True))

    @property
    def numbers(self) -> tuple[int, ...]:
        """The table's number, where there is one."""
        return () if self.table is None else (self.table,)

    @property
    def pattern(self) -> str:
        """The names of its runs, in a shell's notation: ``cifar10-resnet18-{harp,hydra}-{orig,s2ap}-90``."""
        axes = {**self.axes, "arm": [*self.axes["arm"], *self.beside]}
        words = {axis: [_word(axis, value) for value in axes[axis]] for axis in AXES}
        return _join({axis: w[0] if len(w) == 1 else "{" + ",".join(w) + "}" for axis, w in words.items()})


@cache
def presets() -> Mapping[str, Preset]:
    """List every preset by name: the plain files first, then the tables' runs in the order of the tables."""
    by_name: dict[str, Preset] = {}
    for file in sorted(file.name for file in resources.files(__package__).iterdir()):
        if file.endswith(".toml") and file not in PAPER:
            settings = dict(_read(file))
            name = file.removesuffix(".toml")
            by_name[name] = Preset(name, settings.pop("title"), settings)
    for group in groups():
        for combination in group.combinations(group.axes["arm"]):
            preset = _preset(combination, by_name)
            by_name[preset.name] = replace(preset, tables=(*preset.tables, *group.numbers))
        for combination in group.combinations(group.beside):
            preset = _preset(combination, by_name)
            by_name[preset.name] = replace(preset, beside=(*preset.beside, *group.numbers))
    return by_name


@cache
def groups() -> tuple[Group, ...]:
    """List what each table shows, in the order of the tables."""
    return tuple(
        Group(
            entry.get("table"), entry["what"], {axis: entry.get(axis, [None]) for axis in AXES}, entry.get("beside", [])
        )
        for entry in _read("paper_tables.toml")["group"]
    )


def grid_names() -> list[str]:
    """Name the grids that come with the package: the tables', and the files in ``grids``."""
    files = (resources.files(__package__) / "grids").iterdir()
    return [*TABLE_GRIDS, *sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))]


def compose(combination: Combination) -> dict[str, Any]:
    """Compose the settings of a run of the tables."""
    paper = _read("paper_settings.toml")
    settings: dict[str, Any] = {}
    fragments = [paper[axis][combination[axis]]["set"] for axis in FRAGMENTS if combination[axis] is not None]
    fragments.append({"minimizer": {"gamma": paper["gamma"][combination["data"]][combination["network"]]}})
    if combination["sparsity"] is not None:
        fragments.append({"method": {"keep": (100 - combination["sparsity"]) / 100}})
    if combination["flops_reduction"] is not None:
        fragments.append({"method": {"flops_reduction": combination["flops_reduction"]}})
    for fragment in (paper["base"], *fragments):
        for section, values in fragment.items():
            settings.setdefault(section, {}).update(values)
    return settings


def _preset(combination: Combination, known: Mapping[str, Preset]) -> Preset:
    name = _join({axis: _word(axis, combination[axis]) for axis in AXES})
    return known.get(name) or Preset(name, _in_words(combination), compose(combination), grouped=True)


def _in_words(combination: Combination) -> str:
    paper = _read("paper_settings.toml")
    words = {axis: paper[axis][combination[axis]]["title"] for axis in FRAGMENTS if combination[axis] is not None}
    what = ", ".join(words[axis] for axis in ("method", "arm", "training") if axis in words)
    said = f"{what}: {words['network']} on {words['data']}"
    if combination["sparsity"] is not None:
        said += f", {combination['sparsity']} % sparsity"
    if combination["flops_reduction"] is not None:
        said += f", {combination['flops_reduction']}x fewer FLOPs"
    return said


def _word(axis: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value}x" if axis == "flops_reduction" else str(value)


def _join(words: Mapping[str, str]) -> str:
    """Compose a name: a dense network says so first, as there is no arm and no sparsity behind it."""
    axes = ("method", "data", "network") if words["method"] == "dense" else AXES
    return "-".join(words[axis] for axis in axes if words[axis])


@cache
def _read(file: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / file).read_text(encoding="utf-8"))
