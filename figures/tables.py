"""The tables that compare arms: measured, printed in the paper, and the difference of the two."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from figures.captions import caption_of
from figures.catalogue import ARMS, DATA, METHODS, Entry, in_words
from figures.matching import Library
from figures.numbers import Line, disagrees, lines_of, measured_gap, printed
from figures.records import difference, frame_of, printed_arm, records_of
from figures.rendered_table import RenderedTable, Text
from figures.settings import mixed_settings
from figures.verdicts import Verdict, verdicts
from figures.wording import CHANCE, NETWORKS_DIFFER, NOT_RUN, PAPER, signed, spanned
from s2ap_diag.comparison.statistics import LEVEL


def compare_arms(entry: Entry, library: Library) -> RenderedTable:
    """Make a table that shows the arms of each setting side by side."""
    lines = list(lines_of(entry, library))
    labels = _labels(entry, lines)
    rows: list[list[Text]] = []
    records: list[dict[str, Any]] = []
    notes = []
    for line, verdict in zip(lines, verdicts(entry, lines), strict=True):
        if verdict.reason:
            notes.append(f"{line.cell.name}: not compared: {verdict.reason}")
        mixed = mixed_settings(line.runs)
        if mixed:
            notes.append(f"{line.cell.name}: its runs differ in {', '.join(mixed)}")
        cells = [Text(text(line)) for text in labels.values()]
        for part in _parts(entry, lines):
            cells += part(entry, line, verdict)
        rows.append(cells)
        records += records_of(entry, line, verdict, library)
    return RenderedTable(
        id=entry.id,
        heading=entry.heading,
        groups=[("", list(labels)), *_heads(entry, lines)],
        rows=rows,
        caption=caption_of(entry, lines, library),
        records=frame_of(records),
        notes=notes,
    )


def _labels(entry: Entry, lines: Sequence[Line]) -> dict[str, Callable[[Line], str]]:
    """Name the columns that name a row; what the paper's title says is left out where all rows have it in common."""
    labels: dict[str, Callable[[Line], str]] = {
        "Network": lambda line: in_words(line.cell.network),
        "Data": lambda line: DATA[line.cell.data],
        "Method": lambda line: METHODS[line.cell.method],
        "FLOPs" if lines[0].cell.flops_reduction else "Sparsity": lambda line: line.cell.budget,
        "ρ": lambda line: "" if line.rho is None else f"{line.rho:g}",
    }
    varied = {name: len({text(line) for line in lines}) > 1 for name, text in labels.items()}
    kept = ("Network", "Data", "Method", "FLOPs", "Sparsity") if entry.name else ("Network",)
    return {name: text for name, text in labels.items() if varied[name] or name in kept}


Part = Callable[[Entry, Line, Verdict], list[Text]]


def _parts(entry: Entry, lines: Sequence[Line]) -> list[Part]:
    paper = [] if entry.name else [_paper_part, *([_difference_part] if _comparable(lines) else [])]
    return [_measured_part, *paper]


def _comparable(lines: Iterable[Line]) -> bool:
    return all(line.cell.comparable for line in lines)


def _heads(entry: Entry, lines: Sequence[Line]) -> list[tuple[str, list[str]]]:
    arms = [*(ARMS[arm] for arm in entry.arms), *(["Gap Δ"] if entry.gap else [])]
    second = [f"{ARMS[entry.arms[1]]} − {ARMS[entry.arms[0]]} [95 %]"] if len(entry.arms) > 1 else []
    measured = ("measured", [*arms, *second, "Seeds"])
    if entry.name:
        return [measured]
    heads = [measured, ("paper", arms)]
    return [*heads, ("measured − paper", arms)] if _comparable(lines) else heads


def _measured_part(entry: Entry, line: Line, verdict: Verdict) -> list[Text]:
    cells = [_measured(entry, line, arm, arm == verdict.better) for arm in entry.arms]
    if entry.gap:
        cells.append(Text(signed(measured_gap(line, entry.arms))))
    if len(entry.arms) > 1:
        cells.append(_difference(entry, verdict))
    counts = [str(len(line.runs.get(arm, ()))) for arm in entry.arms]
    return [*cells, Text(" / ".join(counts) if any(line.readings.values()) else "")]


def _measured(entry: Entry, line: Line, arm: str, bold: bool) -> Text:
    if arm not in line.readings:
        return Text(NOT_RUN)
    digits = _digits(entry)
    readings = [line.readings[arm][metric] for metric in entry.metrics]
    text = " / ".join(f"{reading.mean:.{digits}f}" for reading in readings)
    spread, (low, high) = readings[-1].std, readings[-1].interval
    if not math.isnan(low):
        text = f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
    return Text(text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}", bold)


def _difference(entry: Entry, verdict: Verdict) -> Text:
    """Write the second arm minus the first, marked where all rows together, or the seed's two networks, allow it."""
    if verdict.difference is None:
        return Text("")
    networks_differ = verdict.difference.p is None and any(p < 1 - LEVEL for p in verdict.mcnemar.values())
    mark = CHANCE if verdict.better else NETWORKS_DIFFER if networks_differ else ""
    return Text(spanned(verdict.difference, _digits(entry)), mark=mark)


def _paper_part(entry: Entry, line: Line, verdict: Verdict) -> list[Text]:
    del verdict
    digits = _digits(entry)
    cells = []
    for arm in entry.arms:
        numbers = [printed(entry, line.cell, metric, printed_arm(arm), line.rho) for metric in entry.metrics]
        if any(math.isnan(value) for value, _ in numbers):
            cells.append(Text(""))
            continue
        text = " / ".join(f"{value:.{digits}f}" for value, _ in numbers)
        spread = numbers[-1][1]
        cells.append(Text(text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}"))
    if entry.gap:
        value, _ = printed(entry, line.cell, "gap", None)
        cells.append(Text(signed(value), mark=PAPER if disagrees(entry, line.cell, "gap") else ""))
    return cells


def _difference_part(entry: Entry, line: Line, verdict: Verdict) -> list[Text]:
    del verdict
    cells = []
    for arm in entry.arms:
        differences = [difference(entry, line, arm, metric) for metric in entry.metrics]
        shown = "" if any(map(math.isnan, differences)) else " / ".join(signed(d, _digits(entry)) for d in differences)
        cells.append(Text(shown))
    if entry.gap:
        cells.append(Text(signed(measured_gap(line, entry.arms) - printed(entry, line.cell, "gap", None)[0])))
    return cells


def _digits(entry: Entry) -> int:
    return 5 if entry.metrics[-1] == "loss_difference" else 2
