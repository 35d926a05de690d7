"""Records of sharpness sorted into curves: one for each run and mode of BatchNorm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from s2ap_diag.reading.files import FOLDERS, is_best, series_of, told_apart


@dataclass(frozen=True)
class Point:
    """A checkpoint's record at its place on the x axis."""

    x: float
    record: dict[str, Any]

    @property
    def best(self) -> bool:
        """Whether this is the checkpoint that the stage handed on."""
        return is_best(Path(self.record["checkpoint"]))

    @property
    def name(self) -> str:
        """The checkpoint's name among the others of its curve."""
        epoch = self.record["epoch"]
        if epoch is None:
            return Path(self.record["checkpoint"]).name.partition(".")[0]
        return f"best, epoch {epoch}" if self.best else f"epoch {epoch}"


@dataclass(frozen=True)
class Curve:
    """The checkpoints of one run, measured in one mode of BatchNorm; ``index`` is its place among the curves."""

    name: str
    index: int
    points: list[Point] = field(default_factory=list)

    @property
    def epochs(self) -> list[Point]:
        """The checkpoints of single epochs, in order; a line joins them."""
        return sorted((point for point in self.points if not point.best), key=lambda point: point.x)

    @property
    def best(self) -> list[Point]:
        """The checkpoints that a stage handed on, each drawn as a separate marker."""
        return [point for point in self.points if point.best]


@dataclass(frozen=True)
class Drawn:
    """The curves, and whether they run over epochs; if not, each checkpoint is drawn by itself, without lines."""

    curves: list[Curve]
    over_epochs: bool

    @property
    def points(self) -> list[Point]:
        """The points of all curves."""
        return [point for curve in self.curves for point in curve.points]

    @property
    def modes(self) -> list[str]:
        """The modes of BatchNorm that the curves were measured in."""
        return list(dict.fromkeys(mode_of(point.record) for point in self.points))

    def name_of(self, curve: Curve, point: Point, between: str = ", ") -> str:
        """Name a point, by its curve too where there are several."""
        return between.join([curve.name] * (len(self.curves) > 1) + [point.name])


def names_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """Name records so that they can be told apart: by their curve where there are several, and the epoch."""
    drawn = arrange(records)
    names = {id(point.record): drawn.name_of(curve, point) for curve in drawn.curves for point in curve.points}
    return [names[id(record)] for record in records]


def arrange(records: Sequence[dict[str, Any]]) -> Drawn:
    """Sort records into curves: none has checkpoints of two runs, or of two modes of BatchNorm.

    They run over epochs if every record says its own and a run has several.
    """
    keys = [_key(record) for record in records]
    names = _names(dict.fromkeys(keys))
    epochs: dict[_Key, set[int | None]] = {key: set() for key in keys}
    for key, record in zip(keys, records, strict=True):
        epochs[key].add(record["epoch"])
    known = all(record["epoch"] is not None for record in records)
    over_epochs = known and any(len(of_curve) > 1 for of_curve in epochs.values())
    curves = {key: Curve(name, index) for index, (key, name) in enumerate(names.items())}
    for place, (key, record) in enumerate(zip(keys, records, strict=True)):
        curves[key].points.append(Point(record["epoch"] if over_epochs else place, record))
    return Drawn(list(curves.values()), over_epochs)


class _Key(NamedTuple):
    """What the checkpoints of a curve have in common."""

    run: Path
    series: str
    batch_norm: str


def _key(record: dict[str, Any]) -> _Key:
    file = Path(record["checkpoint"]).absolute()
    run = file.parent.parent if file.parent.name == FOLDERS["checkpoint"] else file.parent
    return _Key(run, series_of(file), mode_of(record))


def mode_of(record: dict[str, Any]) -> str:
    """Return BatchNorm's mode, without what the record says of how its statistics came about."""
    return str(record["batch_norm"]).partition(" ")[0]


def _names(keys: Iterable[_Key]) -> dict[_Key, str]:
    """Name curves so that they can be told apart, as short as that allows: by the end of a run's path."""
    keys = list(keys)
    runs = list(dict.fromkeys(key.run for key in keys))
    told = dict(zip(runs, told_apart(runs), strict=True))
    several_series = len({(key.run, key.series) for key in keys}) > len(runs)
    several_modes = len({key.batch_norm for key in keys}) > 1
    return {
        key: ", ".join(
            [told[key.run]] + [key.series] * (several_series and bool(key.series)) + [key.batch_norm] * several_modes
        )
        for key in keys
    }
