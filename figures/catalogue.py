"""What the tables and figures show: ``catalogue.toml``, and the runs that each of them asks for."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from s2ap_core.errors import InputError
from s2ap_core.presets.compose import groups


class Names(dict[str, str]):
    """How the paper writes a name; one that it does not have is written as it is."""

    def __missing__(self, name: str) -> str:
        return name


DATA = Names(cifar10="CIFAR-10", svhn="SVHN", imagenet="ImageNet")
NETWORKS = Names(resnet18="ResNet-18", vgg16_bn="VGG-16", wrn_28_4="WRN-28-4", resnet50="ResNet-50", vit="ViT")
METHODS = Names(
    {"harp": "HARP", "hydra": "HYDRA", "rlth": "RLTH", "harp-channels": "HARP", "hydra-channels": "HYDRA", "dense": ""}
)
ARMS = {"orig": "Orig.", "s2ap": "S2AP", "awp": "AWP", "dense": "Dense"}


def in_words(network: str) -> str:
    """Name a network of :func:`s2ap_core.runs.course.network` as the tables do, with a normalisation of its own."""
    name, *more = network.partition(" with ")
    return "".join([NETWORKS.get(name, name), *more])


@dataclass(frozen=True)
class Cell:
    """A cell of the paper's tables: a setting that runs are made for; its arms differ in the minimiser alone.

    Attributes:
        method: ``dense`` is a network before pruning.
        sparsity: percent of weights removed; None where FLOPs are the budget, or nothing is pruned.
        training: ``clean`` without an adversary, else None.
        printed: the data set that the paper's numbers are of, where ``data`` stands in for it.
    """

    data: str
    network: str
    method: str
    sparsity: float | None = None
    flops_reduction: float | None = None
    training: str | None = None
    printed: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """The setting in the words of a config."""
        words = [self.data, self.network, self.method, self.budget, self.training]
        return " ".join(word for word in words if word)

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers are of this data set."""
        return self.data == self.printed

    @property
    def budget(self) -> str:
        """Sparsity or FLOPs reduction in words."""
        if self.sparsity is not None:
            return f"{self.sparsity:g} %"
        return "" if self.flops_reduction is None else f"{self.flops_reduction:g}× fewer FLOPs"


@dataclass(frozen=True)
class Entry:
    """A table or figure; see ``catalogue.toml``.

    Attributes:
        kind: which renderer draws it.
        cells: the settings that it shows, in order.
        arms: which are compared, the baseline first.
        stage: whose evaluation it shows.
        metrics: what it shows of each run; the last one is judged.
        gap: whether it shows the generalisation gap of Sect. 4.2.
        panels: axes of a cell with a panel for each value.
        substitute: the data set that stands in for the paper's.
        name: what it is called, where it is none of the paper's and has no number.
    """

    id: str
    title: str
    kind: str
    cells: tuple[Cell, ...]
    arms: tuple[str, ...] = ("orig", "s2ap")
    stage: str | None = None
    metrics: tuple[str, ...] = ()
    gap: bool = False
    rho: tuple[float, ...] = ()
    severity: int | None = None
    panels: tuple[str, ...] = ()
    substitute: str | None = None
    name: str = ""

    @property
    def is_table(self) -> bool:
        return self.id.startswith("table")

    @property
    def needs(self) -> tuple[str, ...]:
        """What it reads of a run, in the words of :meth:`figures.matching.Library.holds`."""
        evaluation = f"evaluate-{self.stage}"
        return {
            "corruptions": ("corruptions",),
            "overhead": ("timing",),
            "sharpness": ("sharpness",),
            "loss-difference": ("sharpness",),
            "eigenvalue": ("curvature",),
            "effects": (evaluation, "masks", "curvature"),
        }.get(self.kind, ("masks",) if self.kind.startswith("hamming") else (evaluation,))

    @property
    def heading(self) -> str:
        """``Table 1: ...``, with the data sets named."""
        number = self.id.removeprefix("table").removeprefix("fig")
        name = self.name or f"{'Table' if self.is_table else 'Figure'} {number}"
        data = " and ".join(dict.fromkeys(DATA[cell.data] for cell in self.cells))
        return f"{name}: {self.title.replace('{data}', data)}"

    @property
    def request(self) -> "Entry":
        """What it asks for, without its name: two entries with the same request show the same."""
        return replace(self, id="", title="")


def load_catalogue(dataset: str | None = None) -> list[Entry]:
    """Load all entries in the paper's order, on the paper's data sets, or on another that stands in for them."""
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    entries = [_entry(written) for written in tomllib.loads(text)["entry"]]
    return entries if dataset is None else [_on(entry, dataset) for entry in entries]


def repeated(entries: Sequence[Entry]) -> dict[str, str]:
    """Find the entries that show the same as an earlier one, and that one's id."""
    first: dict[Entry, str] = {}
    return {e.id: first[e.request] for e in entries if first.setdefault(e.request, e.id) != e.id}


def choose(entries: Sequence[Entry], only: Iterable[str]) -> list[Entry]:
    """Choose the entries named, in the paper's order; if none is named, all but the repeated.

    Raises:
        InputError: if an id is unknown.
    """
    named, known = list(only), [entry.id for entry in entries]
    for name in named:
        if name not in known:
            raise InputError(f"--only {name}: no such table or figure; known are {', '.join(known)}")
    if named:
        return [entry for entry in entries if entry.id in named]
    again = repeated(entries)
    return [entry for entry in entries if entry.id not in again]


def _entry(written: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    grid = values.pop("grid", None) or _preset_grid(written["id"])
    cells = dict.fromkeys(cell for axes in grid for cell in _cells(axes))
    return Entry(cells=tuple(cells), **values)


def _preset_grid(table: str) -> list[dict[str, Any]]:
    return [dict(group.axes) for group in groups() if f"table{group.table}" == table]


def _cells(axes: dict[str, Any]) -> Iterable[Cell]:
    names = ("data", "network", "method", "sparsity", "flops_reduction", "training")
    for values in product(*(axes.get(name, [None]) for name in names)):
        yield Cell(**dict(zip(names, values, strict=True)), printed=values[0])


def _on(entry: Entry, dataset: str) -> Entry:
    """Move an entry to a data set; cells that become the same are one, the data set's own numbers first."""
    own_first = sorted(entry.cells, key=lambda cell: cell.data != dataset)
    printed = {replace(cell, data=dataset): cell.printed for cell in reversed(own_first)}
    cells = dict.fromkeys(replace(cell, data=dataset) for cell in entry.cells)
    of_paper = tuple(replace(cell, printed=printed[cell]) for cell in cells)
    return replace(entry, cells=of_paper, substitute=dataset)
