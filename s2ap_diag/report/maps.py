"""Where in the network, and since when: readings of a run by layer and epoch, and the layers that moved most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap
from pydantic import BaseModel

from s2ap_core.files.packed import PackedMask
from s2ap_core.files.record import load_json
from s2ap_core.runs import course
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.reading.read import read
from s2ap_diag.reading.results import Run, validated
from s2ap_diag.report.groups import Group, marks_of
from s2ap_diag.stability import Hamming, PackedMasks, hamming

COLOUR_MAP, OF_DIFFERENCES = "cividis", "PuOr_r"
"""Both can be read without red or green cones; the lightness of the first rises evenly, so that it reads in grey."""

BY_NIGHT = LinearSegmentedColormap.from_list("by_night", ["#b2abd2", "#14171a", "#fdb863"])
"""Of differences in a dark page: from its ground to lighter tones of the same two colours."""

STOPS = 32
"""Colours of a map that the page interpolates between."""

NAMED = 3
"""Layers of an arm that are named for having moved most."""


@dataclass(frozen=True)
class Kind:
    """What a map is of.

    Attributes:
        log: whether its colours are of logarithms, and two of it are compared by their ratio.
        zero: whether its colours begin at 0.
    """

    title: str
    log: bool = False
    zero: bool = True


OF_MASKS = {
    "h": Kind("h to the first mask"),
    "changed": Kind("share that changed hands since the epoch before"),
    "kept": Kind("share kept (HARP's rates)", zero=False),
    "dead": Kind("share of output channels without a weight"),
}
"""What the saved masks say."""

TRACKED = {
    "margin": Kind("margin: the least γ that flips an entry", log=True),
    "switchable": Kind("switchable: share that some z within γ flips"),
    "perturbation_flips": Kind("entries that z flips"),
    "curvature_along_z": Kind("curvature along z"),
}
"""What the search writes of each layer with ``tracking.by_layer``: metrics named ``KIND/LAYER``."""

MEASURED = {
    "lambda_max_live_running": Kind("live λ_max of the layer, BatchNorm running", log=True),
    "lambda_max_live_batch": Kind("live λ_max of the layer, BatchNorm batch", log=True),
    "lambda_max_live_none": Kind("live λ_max of the layer", log=True),
}
"""What :data:`BY_LAYER` holds."""

BY_LAYER = "sharpness-by-layer.json"
"""What ``s2ap-diag sharpness RUN/ckpt --by-layer --json RUN/sharpness-by-layer.json`` gave."""

KINDS = {**OF_MASKS, **MEASURED, **TRACKED}


@dataclass(frozen=True)
class LayerMaps:
    """The maps of a run.

    Attributes:
        layers: their names, from the input on.
        epochs: of the columns.
        values: by kind [layers, epochs], NaN where there is no reading.
    """

    layers: Sequence[str]
    epochs: Sequence[int]
    values: Mapping[str, np.ndarray]

    def compact(self) -> dict[str, list[list[float | None]]]:
        """Give the values as JSON can hold them, three significant digits each; kinds that have none are left out."""
        return {
            kind: [[_short(value) for value in row] for row in values]
            for kind, values in self.values.items()
            if not np.isnan(values).all()
        }


def read_maps(run: Run) -> tuple[LayerMaps, list[Hamming]]:
    """Read the maps of a search, and the distance of each epoch's mask, from 1, to the first.

    Two masks are held beside the first one at a time.

    Raises:
        InputError: if a mask or ``metrics.csv`` is missing or damaged.
    """
    files, epochs = RunDirectory(run.path, run.config), course.epochs(run.config, "prune")
    first = before = _masks(files, 0)
    distances: list[Hamming] = []
    columns: dict[str, list[list[float]]] = {kind: [] for kind in OF_MASKS}
    for epoch in epochs:
        mask = _masks(files, epoch)
        distances.append(hamming(first, mask))
        columns["h"].append(list(distances[-1].layers.values()))
        columns["changed"].append(list(hamming(before, mask).layers.values()))
        columns["kept"].append([layer.kept / layer.entries for layer in mask.layers.values()])
        columns["dead"].append([_dead_share(layer) for layer in mask.layers.values()])
        before = mask
    layers = [name.removesuffix(".weight") for name in first.layers]
    shape = (len(layers), len(epochs))
    values = {kind: np.array(rows, dtype=float).T.reshape(shape) for kind, rows in columns.items()}
    return LayerMaps(
        layers, list(epochs), values | _tracked(run, layers, list(epochs)) | _measured(run, layers, list(epochs))
    ), distances


def _masks(files: RunDirectory, epoch: int) -> PackedMasks:
    return read(files.masks(epoch)).as_masks().masks


def _dead_share(mask: PackedMask) -> float:
    """Compute the share of output channels, the rows of a weight, that keep no entry."""
    rows = mask.shape[0]
    wide = mask.entries // rows
    if wide % 8:
        kept = mask.unpack().reshape(rows, wide).any(axis=1)
    else:
        kept = mask.words.view(np.uint8)[: mask.entries // 8].reshape(rows, wide // 8).any(axis=1)
    return 1 - float(kept.mean())


def _tracked(run: Run, layers: Sequence[str], epochs: Sequence[int]) -> dict[str, np.ndarray]:
    rows = run.metrics
    chosen = rows[(rows["stage"] == "prune") & rows["iteration"].isna() & rows["metric"].str.contains("/", regex=False)]
    place, when = ({name: i for i, name in enumerate(names)} for names in (layers, epochs))
    maps: dict[str, np.ndarray] = {}
    for metric, epoch, value in zip(chosen["metric"], chosen["epoch"], chosen["value"], strict=True):
        kind, _, layer = metric.partition("/")
        layer = layer.removesuffix(".weight")
        if kind in TRACKED and layer in place and epoch in when:
            values = maps.setdefault(kind, np.full((len(layers), len(epochs)), np.nan))
            values[place[layer], when[epoch]] = value
    return maps


class _Measured(BaseModel):
    """A record of ``sharpness --by-layer --json``."""

    checkpoint: str
    epoch: int | None
    batch_norm: str
    layers_live: dict[str, float]


def _measured(run: Run, layers: Sequence[str], epochs: Sequence[int]) -> dict[str, np.ndarray]:
    """Read lambda_max of each layer, of the search's checkpoints that were measured."""
    file, remedy = run.path / BY_LAYER, "measure it again"
    maps: dict[str, np.ndarray] = {}
    for entry in load_json(file, list, remedy) if file.is_file() else []:
        record = validated(_Measured, entry, file, remedy)
        of_search = Path(record.checkpoint).name.startswith("prune-epoch-")
        if of_search and record.epoch is not None and record.epoch in epochs:
            kind = f"lambda_max_live_{record.batch_norm.partition(' ')[0]}"
            values = maps.setdefault(kind, np.full((len(layers), len(epochs)), np.nan))
            column = [record.layers_live.get(layer, math.nan) for layer in layers]
            values[:, list(epochs).index(record.epoch)] = column
    return maps


@dataclass(frozen=True)
class Moved:
    """The layers of an arm that changed hands most.

    Attributes:
        layers: names and, over the search, changes of hands for each entry of the layer, the mean over the seeds.
    """

    facet: str
    arm: str
    layers: Sequence[tuple[str, float]]


def moved_most(group: Group, maps: Mapping[str, LayerMaps]) -> list[Moved]:
    """Name, of each facet and arm, the layers in which most entries changed hands.

    Args:
        maps: of runs, by their path.
    """
    found = []
    for facet in group.facets:
        for arm, seeds in facet.arms.items():
            ours = [maps[run.path.as_posix()] for run in seeds.values() if run.path.as_posix() in maps]
            ours = [one for one in ours if one.epochs and one.layers == ours[0].layers]
            if ours:
                share = np.mean([one.values["changed"].sum(axis=1) for one in ours], axis=0)
                most = np.argsort(-share, kind="stable")[:NAMED]
                found.append(Moved(facet.title, arm, [(ours[0].layers[i], float(share[i])) for i in most if share[i]]))
    return [one for one in found if one.layers]


def atlas(groups: Sequence[Group], maps: Mapping[str, LayerMaps], numbers: Mapping[str, int]) -> dict[str, object]:
    """Collect what the page draws maps from, as JSON can hold it.

    Args:
        numbers: of the runs that the page shows, by their path.

    Returns:
        ``kinds`` by key, ``layers``: the lists of names that there are; ``runs`` by number: the number of their
        list, epochs, arm and maps; ``sides``: each arm of a facet with its runs.
    """
    names: list[Sequence[str]] = []
    runs, marks = {}, marks_of(groups)
    for path, one in maps.items():
        if path in numbers and one.epochs:
            if one.layers not in names:
                names.append(one.layers)
            about = {
                "layers": names.index(one.layers),
                "epochs": one.epochs,
                "arm": marks[path].own if path in marks else None,
            }
            runs[numbers[path]] = about | {"maps": one.compact()}
    sides = [
        {"name": f"{facet.title}: {arm}", "group": index, "arm": group.marks[arm], "runs": shown}
        for index, group in enumerate(groups)
        for facet in group.facets
        for arm, seeds in facet.arms.items()
        if (shown := [n for run in seeds.values() if (n := numbers.get(run.path.as_posix())) in runs])
    ]
    kinds = {key: asdict(kind) for key, kind in KINDS.items()}
    colours = {
        "values": _stops(colormaps[COLOUR_MAP]),
        "differences": _stops(colormaps[OF_DIFFERENCES]),
        "by_night": _stops(BY_NIGHT),
    }
    return {"kinds": kinds, "layers": names, "runs": runs, "sides": sides, "colours": colours}


def _stops(colours: Colormap) -> list[list[int]]:
    """Give a colour map as red, green and blue of evenly spaced places."""
    return [[round(255 * channel) for channel in colours(i / (STOPS - 1))[:3]] for i in range(STOPS)]


def _short(value: float) -> float | None:
    if math.isnan(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short
