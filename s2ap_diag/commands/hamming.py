"""``s2ap-diag hamming``: how much does the mask change while it is searched?"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s2ap_core.errors import InputError
from s2ap_diag.execution.progress import counting
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import Table, make_table
from s2ap_diag.reading.files import FOLDERS, epoch_of, expand, how_read, told_apart, told_shortly, which_is_which
from s2ap_diag.reading.read import read
from s2ap_diag.stability import Hamming, PackedMasks, hamming


def run_command(
    masks: tuple[Path, ...],
    against: str,
    by_layer: bool,
    per_kept: bool,
    keep: float | None,
    network: str | None,
    output: Output,
) -> None:
    """Compare masks within each folder or between two, show the distances and draw them."""
    folders = [path for path in masks if os.path.isdir(path)]
    if len(folders) == len(masks):
        again = [f" ({i})" if masks.index(p) < i else "" for i, p in enumerate(masks)]
        names = [f"{p}{more}" for p, more in zip(masks, again, strict=True)]
        groups = {name: expand([p], "masks") for name, p in zip(names, masks, strict=True)}
        runs = told_apart([p.parent if p.name == FOLDERS["masks"] else p for p in map(Path.absolute, masks)])
        whole = [f"{run}{more}" for run, more in zip(runs, again, strict=True)]
        told = told_shortly(whole)
        short, above = dict(zip(names, told, strict=True)), which_is_which(whole, told)
    else:
        groups, short, above = {"masks": expand(masks, "masks")}, {"masks": "masks"}, []
    if against == "other" and len(groups) != 2:
        raise InputError("--against other: give two folders of masks")
    with counting("hamming", sum(map(len, groups.values())), output.quiet) as advance:
        headers: dict[Path, dict[str, Any]] = {}
        begins: dict[str, Path] = {}  # the first layer's name in each file

        def masks_of(path: Path) -> PackedMasks:
            advance()
            file = read(path, keep=keep, network=network).as_masks()
            headers[path] = file.header
            begins.setdefault(next(iter(file.masks.layers), ""), path)
            return file.masks

        compared = between(groups, masks_of) if against == "other" else within(groups, masks_of, against)
    short |= {" vs ".join(groups): " vs ".join(short[name] for name in groups)}
    if not compared:
        raise InputError(f"{masks[0]}: a single mask; give the folder, or another mask to compare it with")
    measure = "h_per_kept" if per_kept else "h"
    said = {name: headers[paths[0]] for name, paths in groups.items() if name in compared}
    arms = over_seeds(compared, said, short, measure)
    differences: list[dict[str, Any]] = []
    if len(arms) == 2:
        first, second = map(mean_of, arms.values())
        differences = [{"epoch": e, "difference": first[e] - second[e]} for e in first if e in second]
    records = [row for rows in compared.values() for row in rows]
    table = table_of(compared, short, differences, measure, against)
    notes = [*how_read(headers.items()), *renamed(begins), *kept_otherwise(records)]
    if differences:
        notes.append(f"difference: {' − '.join(arms)}")
    output.emit([*records, *differences], table, above=above, notes=notes)
    if output.plot is not None:
        from s2ap_diag.output import mask_changes  # matplotlib takes longer than the rest

        if by_layer:
            layers = [(short[name], {row["epoch"]: row["layers"] for row in rows}) for name, rows in compared.items()]
            mask_changes.draw_layers(layers, output.plot)
        else:
            mask_changes.draw(arms, differences, output.plot, "h per kept weight" if per_kept else "h")


KEPT_ALIKE = 0.05
"""Share of h that may come from masks of different size before it is said."""


def kept_otherwise(records: Sequence[dict[str, Any]]) -> list[str]:
    """Say of the distance that owes most to it which part only tells how many entries the two masks keep."""
    parts = [abs(row["kept"] - row["kept_other"]) / row["flipped"] if row["flipped"] else 0.0 for row in records]
    most = max(parts)
    if most <= KEPT_ALIKE:
        return []
    row = records[parts.index(most)]
    kept, other = (f"{row[name] / row['entries']:.1%}" for name in ("kept", "kept_other"))
    return [f"{row['masks']}: keeps {other} of the entries against {kept}, which alone makes {most:.0%} of its h"]


Compared = dict[str, list[dict[str, Any]]]

Distances = dict[str, dict[int, float]]
"""Of one arm: h by folder and epoch."""


def renamed(begins: dict[str, Path]) -> list[str]:
    """Say which names were matched without a prefix, given the first layer's name of each file."""
    name, *others = begins
    return [f"{begins[other]}: its {other} is {name} of {begins[name]}" for other in others]


def within(groups: dict[str, list[Path]], read: Callable[[Path], PackedMasks], against: str) -> Compared:
    """Compare each group's masks with its first or with the one before; a group of one file has no distances."""
    compared: Compared = {}
    for name, paths in groups.items():
        base = read(paths[0])
        rows: list[dict[str, Any]] = []
        for path in paths[1:]:
            mask = read(path)
            rows.append(record(path, hamming(base, mask), len(rows) + 1))
            base = mask if against == "previous" else base
        if rows:
            compared[name] = rows
    return compared


def between(groups: dict[str, list[Path]], read: Callable[[Path], PackedMasks]) -> Compared:
    """Compare the masks of the same epoch in two folders."""
    first, second = ({epoch_of(p): p for p in paths} for paths in groups.values())
    common = [epoch for epoch in first if epoch in second]
    rows = [record(second[e], hamming(read(first[e]), read(second[e])), i) for i, e in enumerate(common)]
    return {" vs ".join(groups): rows} if rows else {}


def over_seeds(
    compared: Compared, headers: dict[str, dict[str, Any]], short: dict[str, str], measure: str
) -> dict[str, Distances]:
    """Gather h by arm; folders that differ in their seed alone are one arm.

    Args:
        short: short names of what is compared.
    """
    by_arm: dict[Any, dict[int, str]] = {}
    for name in compared:
        arm, seed = _arm_and_seed(headers.get(name, {}))
        if seed is None or seed in by_arm.get(arm, {}):
            arm, seed = name, 0
        by_arm.setdefault(arm, {})[seed] = name
    distances: dict[str, Distances] = {}
    for arm, names in by_arm.items():
        label = short[next(iter(names.values()))] if len(names) == 1 else f"{arm[0]} {arm[1]}"
        distances[f"{label} ({len(distances) + 1})" if label in distances else label] = {
            name: {row["epoch"]: row[measure] for row in compared[name] if row[measure] is not None}
            for name in names.values()
        }
    return distances


def mean_of(arm: Distances) -> dict[int, float]:
    """Average an arm's h over its folders, by epoch."""
    epochs = sorted({epoch for distances in arm.values() for epoch in distances})
    by_epoch = {epoch: [distances[epoch] for distances in arm.values() if epoch in distances] for epoch in epochs}
    return {epoch: sum(distances) / len(distances) for epoch, distances in by_epoch.items()}


def _arm_and_seed(header: dict[str, Any]) -> tuple[Any, int | None]:
    """Read what a file of ours says of its run, apart from the seed, and the seed; None of another tool's."""
    return tuple(str(header.get(k)) for k in ("method", "minimizer", "keep", "dataset", "network")), header.get("seed")


def record(path: Path, distance: Hamming, position: int) -> dict[str, Any]:
    """Make the entry of ``hamming --json``; a file without a number is known by its position."""
    epoch = epoch_of(path)
    return {
        "masks": str(path),
        "epoch": position if epoch is None else epoch,
        "h": distance.h,
        "h_per_kept": distance.h_per_kept,
        "flipped": distance.flipped,
        "entries": distance.entries,
        "kept": distance.kept,
        "kept_other": distance.kept_other,
        "iou": distance.iou,
        "chance": distance.chance,
        "h_over_chance": distance.h_over_chance,
        "ceiling": distance.ceiling,
        "h_over_ceiling": distance.h_over_ceiling,
        "layers": distance.layers,
    }


def table_of(
    compared: Compared, short: dict[str, str], differences: list[dict[str, Any]], measure: str, against: str
) -> Table:
    """Lay out files down; h (and its ratio to chance) of each group across, and their difference.

    Files of several groups share a row where their epochs are the same; it has the first one's name.
    """
    alone = len(compared) == 1
    by_place: dict[int, dict[str, Any]] = {}
    for name, rows in compared.items():
        told = told_apart([Path(row["masks"]) for row in rows])
        for position, (file, row) in enumerate(zip(told, rows, strict=True)):
            cells = by_place.setdefault(position if alone else row["epoch"], {"masks": file})
            of_group = "" if alone else f"{short[name]} "
            cells |= {measure if alone else short[name]: row[measure], f"{of_group}flipped": row["flipped"]}
            cells |= {"over chance": row["h_over_chance"]} if alone else {}
    for row in differences:
        by_place[row["epoch"]]["difference"] = row["difference"]
    columns = list(dict.fromkeys(c for cells in by_place.values() for c in cells))
    title = f"{measure} against the {against} mask" if against != "other" else f"{measure} between the two"
    if alone:
        title = ", ".join([*(short[name] for name in compared if name != "masks"), title])
    return make_table(
        title,
        columns,
        [[cells.get(c) for c in columns] for _, cells in sorted(by_place.items())],
        gives_way=[c for c in columns if c.endswith("flipped")],
    )
