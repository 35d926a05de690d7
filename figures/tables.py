"""The tables: measured, printed in the paper, and the difference of the two."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from figures.catalogue import ARMS, DATA, METHODS, NETWORKS, Cell, Entry
from figures.grid import Grid, Text
from figures.matching import Library, mixed_settings, paper_gamma, training_of
from figures.numbers import (
    Line,
    comparison,
    disagrees,
    judge,
    lines_of,
    measured_gap,
    printed,
)
from s2ap_diag.reading.results import Run
from s2ap_diag.statistics import Comparison

RECORD = (
    "table", "data", "network", "method", "arm", "sparsity", "flops_reduction", "severity", "rho", "gamma", "metric",
    "seed", "measured", "std", "seeds", "interval_low", "interval_high", "mark", "paper", "paper_std",
    "difference", "paper_disagrees",
)  # fmt: skip
"""Columns of a table's CSV, empty where they do not apply; accuracies, gaps and differences in percent."""

NOT_RUN = "not run"
TIE, CHANCE, PAPER = "†", "*", "‡"
SECONDS_PER_HOUR = 3600


def compare_arms(entry: Entry, library: Library) -> Grid:
    """A table that shows the arms of each setting side by side."""
    lines = list(lines_of(entry, library))
    labels = _labels(entry, lines)
    rows: list[list[Text]] = []
    records: list[dict[str, Any]] = []
    notes = []
    for line in lines:
        found, reason = comparison(line, entry)
        if reason:
            notes.append(f"{line.cell.name}: not compared: {reason}")
        mixed = mixed_settings(line.runs)
        if mixed:
            notes.append(f"{line.cell.name}: its runs differ in {', '.join(mixed)}")
        cells = [Text(text(line)) for text in labels.values()]
        for part in _parts(entry, lines):
            cells += part(entry, line, found)
        rows.append(cells)
        records += _records(entry, line, found, library)
    return Grid(
        id=entry.id,
        heading=entry.heading,
        groups=[("", list(labels)), *_heads(entry, lines)],
        rows=rows,
        caption=_caption(entry, lines, library),
        records=_frame(records),
        notes=notes,
    )


def _labels(entry: Entry, lines: Sequence[Line]) -> dict[str, Callable[[Line], str]]:
    """The columns that name a row, without those in which all rows are the same."""
    labels: dict[str, Callable[[Line], str]] = {
        "Network": lambda line: NETWORKS[line.cell.network],
        "Data": lambda line: DATA.get(line.cell.data, line.cell.data),
        "Method": lambda line: METHODS.get(line.cell.method, ""),
        "FLOPs" if lines[0].cell.flops_reduction else "Sparsity": lambda line: line.cell.budget,
        "ρ": lambda line: "" if line.rho is None else f"{line.rho:g}",
    }
    return {name: text for name, text in labels.items() if name == "Network" or len({text(ln) for ln in lines}) > 1}


Part = Callable[[Entry, Line, Comparison | None], list[Text]]


def _parts(entry: Entry, lines: Sequence[Line]) -> list[Part]:
    return [_measured_part, _paper_part, *([_difference_part] if _comparable(lines) else [])]


def _comparable(lines: Iterable[Line]) -> bool:
    return all(line.cell.comparable for line in lines)


def _heads(entry: Entry, lines: Sequence[Line]) -> list[tuple[str, list[str]]]:
    arms = [*(ARMS[arm] for arm in entry.arms), *(["Gap Δ"] if entry.gap else [])]
    tested = entry.kind == "accuracy" and len(entry.arms) > 1
    second = [f"{ARMS[entry.arms[1]]} − {ARMS[entry.arms[0]]} [95 %]"] if tested else []
    heads = [("measured", [*arms, *second, "Seeds"]), ("paper", arms)]
    return [*heads, ("measured − paper", arms)] if _comparable(lines) else heads


def _measured_part(entry: Entry, line: Line, found: Comparison | None) -> list[Text]:
    marks = _marks(entry, line)
    cells = [_measured(entry, line, arm, *marks[arm]) for arm in entry.arms]
    if entry.gap:
        cells.append(Text(_signed(measured_gap(line, entry.arms))))
    if entry.kind == "accuracy" and len(entry.arms) > 1:
        cells.append(_interval(found))
    counts = [str(len(line.runs.get(arm, ()))) for arm in entry.arms]
    return [*cells, Text(" / ".join(counts) if any(line.readings.values()) else "")]


def _measured(entry: Entry, line: Line, arm: str, bold: bool, mark: str) -> Text:
    if arm not in line.readings:
        return Text(NOT_RUN)
    digits = _digits(entry)
    readings = [line.readings[arm][metric] for metric in entry.metrics]
    text = " / ".join(f"{reading.mean:.{digits}f}" for reading in readings)
    spread, (low, high) = readings[-1].std, readings[-1].interval
    if not math.isnan(low):
        text = f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
    return Text(text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}", bold, mark)


def _marks(entry: Entry, line: Line) -> dict[str, tuple[bool, str]]:
    """Bold and mark of each arm by the rule, see :func:`figures.numbers.judge`."""
    plain = dict.fromkeys(entry.arms, (False, ""))
    if len(entry.arms) < 2 or not all(arm in line.readings for arm in entry.arms):
        return plain
    first, second = (line.readings[arm][entry.metrics[-1]] for arm in entry.arms)
    verdict = judge(first, second, lower=_lower_is_better(entry))
    if verdict == "tie":
        return dict.fromkeys(entry.arms, (False, TIE))
    if verdict is None:
        return plain
    return plain | {entry.arms[0 if verdict == "first" else 1]: (True, "")}


def _interval(found: Comparison | None) -> Text:
    if found is None:
        return Text("")
    ends = f"{_signed(100 * found.difference)} [{_signed(100 * found.low)}, {_signed(100 * found.high)}]"
    return Text(ends, mark=CHANCE if found.beyond_chance else "")


def _paper_part(entry: Entry, line: Line, found: Comparison | None) -> list[Text]:
    del found
    digits = _digits(entry)
    cells = []
    for arm in entry.arms:
        numbers = [printed(entry, line.cell, metric, _printed_arm(arm), line.rho) for metric in entry.metrics]
        if any(math.isnan(value) for value, _ in numbers):
            cells.append(Text(""))
            continue
        text = " / ".join(f"{value:.{digits}f}" for value, _ in numbers)
        spread = numbers[-1][1]
        cells.append(Text(text if math.isnan(spread) else f"{text} ± {spread:.{digits}f}"))
    if entry.gap:
        value, _ = printed(entry, line.cell, "gap", None)
        cells.append(Text(_signed(value), mark=PAPER if disagrees(entry, line.cell, "gap") else ""))
    return cells


def _difference_part(entry: Entry, line: Line, found: Comparison | None) -> list[Text]:
    del found
    cells = []
    for arm in entry.arms:
        differences = [_difference(entry, line, arm, metric) for metric in entry.metrics]
        shown = "" if any(map(math.isnan, differences)) else " / ".join(_signed(d, _digits(entry)) for d in differences)
        cells.append(Text(shown))
    if entry.gap:
        cells.append(Text(_signed(measured_gap(line, entry.arms) - printed(entry, line.cell, "gap", None)[0])))
    return cells


def _difference(entry: Entry, line: Line, arm: str, metric: str) -> float:
    """Measured minus printed, NaN where one is missing or they are of different data sets."""
    if arm not in line.readings or not line.cell.comparable:
        return math.nan
    return line.readings[arm][metric].mean - printed(entry, line.cell, metric, _printed_arm(arm), line.rho)[0]


def _printed_arm(arm: str) -> str | None:
    return None if arm == "dense" else arm


def _lower_is_better(entry: Entry) -> bool:
    return entry.metrics[-1] == "loss_difference"


def _digits(entry: Entry) -> int:
    return 5 if entry.metrics[-1] == "loss_difference" else 2


def _signed(value: float, digits: int = 2) -> str:
    """With its sign; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # -0.0 becomes 0.0


def _about(entry: Entry, cell: Cell, **values: Any) -> dict[str, Any]:
    """What a record says of its setting."""
    about = {
        "table": entry.id,
        "data": cell.data,
        "network": cell.network,
        "method": "" if cell.method == "dense" else cell.method,
        "sparsity": cell.sparsity,
        "flops_reduction": cell.flops_reduction,
        "severity": entry.severity,
    }
    return {**about, **values}


def _records(entry: Entry, line: Line, found: Comparison | None, library: Library) -> list[dict[str, Any]]:
    records = []
    marks = _marks(entry, line)
    for arm in entry.arms:
        for metric in entry.metrics:
            value, std = printed(entry, line.cell, metric, _printed_arm(arm), line.rho)
            reading = line.readings.get(arm, {}).get(metric)
            low, high = (math.nan, math.nan) if reading is None else reading.interval
            bold, mark = marks[arm] if metric == entry.metrics[-1] else (False, "")
            records.append(
                _about(
                    entry,
                    line.cell,
                    arm=arm,
                    rho=line.rho,
                    gamma=None if arm in ("orig", "dense") else library.gamma(line.cell),
                    metric=metric,
                    measured=None if reading is None else reading.mean,
                    std=None if reading is None else reading.std,
                    seeds=0 if reading is None else len(reading.by_seed),
                    interval_low=low,
                    interval_high=high,
                    mark="best" if bold else {TIE: "tie"}.get(mark, ""),
                    paper=value,
                    paper_std=std,
                    difference=_difference(entry, line, arm, metric),
                )
            )
    if entry.gap:
        measured, (value, _) = measured_gap(line, entry.arms), printed(entry, line.cell, "gap", None)
        records.append(
            _about(
                entry,
                line.cell,
                metric="gap",
                measured=measured,
                paper=value,
                difference=measured - value if line.cell.comparable else None,
                paper_disagrees=disagrees(entry, line.cell, "gap"),
            )
        )
    if found is not None:
        arm = f"{entry.arms[1]} - {entry.arms[0]}"
        records.append(
            _about(
                entry,
                line.cell,
                arm=arm,
                metric=entry.metrics[-1],
                measured=100 * found.difference,
                seeds=len(found.mcnemar),
                interval_low=100 * found.low,
                interval_high=100 * found.high,
                mark="beyond chance" if found.beyond_chance else "",
            )
        )
        records += [
            _about(entry, line.cell, arm=arm, metric="mcnemar_p", seed=seed, measured=p)
            for seed, p in found.mcnemar.items()
        ]
    return records


def _frame(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=list(RECORD)).astype({"seed": "Int64", "seeds": "Int64"})


def _caption(entry: Entry, lines: Sequence[Line], library: Library) -> list[str]:
    """What the numbers are of, and the rules of the marks; of those alone that the table shows."""
    runs = [run for line in lines for by_arm in line.runs.values() for run in by_arm]
    said = []
    said += trainings(runs)
    if entry.kind == "accuracy":
        said += attacks(entry, lines)
    if entry.kind == "corruptions" and entry.substitute not in (None, "cifar10"):
        said.append("CIFAR-10-C is of CIFAR-10 alone, so nothing can be measured on other data.")
    if entry.kind == "sharpness":
        said += _sharpness_conditions(runs)
    said.append("±: standard deviation over seeds.")
    if entry.kind == "accuracy":
        said.append("Brackets behind an accuracy: with one seed, its 95 % Wilson interval over images.")
    if len(entry.arms) > 1:
        said.append(
            f"Bold: the better arm, where mean ± std of the two do not overlap; {TIE} a tie: they do; unmarked: fewer "
            "than two seeds."
        )
        if entry.kind == "accuracy":
            first, second = (ARMS[arm] for arm in entry.arms)
            said.append(
                f"{CHANCE} beyond chance: the 95 % interval of {second} − {first}, by paired bootstrap over seeds and "
                "images, excludes 0; with one seed it is over images alone."
            )
    if entry.gap:
        said.append("Δ = (clean − robust of Orig.) − (clean − robust of S2AP), recomputed.")
        said.append(f"{PAPER} the paper's gap does not follow from its accuracies.")
    return [*said, *substituted(entry), *gammas(entry, library)]


def trainings(runs: Iterable[Run]) -> list[str]:
    """What the runs were trained on."""
    found = sorted({str(training_of(run.config)) for run in runs})
    return [f"Trained with {'; with '.join(found)}."] if found else []


def attacks(entry: Entry, lines: Iterable[Line]) -> list[str]:
    """Attack, radius and number of images of the evaluations."""
    found = Counter(
        _attack(evaluation.about, len(evaluation.label))
        for line in lines
        for by_seed in line.evaluations.values()
        for evaluation in by_seed.values()
    )
    if not found:
        return []
    said = f"Accuracy in %: {'; '.join(sorted(found))}."
    return [said if len(found) == 1 else f"{said} Not all numbers are of the same evaluation."]


def _attack(about: dict[str, Any], n: int) -> str:
    if about["attack"] == "none":
        return f"no attack, {n} test images"
    return f"{about['attack']}, {about['norm']}, eps {about['eps']}, {n} test images"


def _sharpness_conditions(runs: Iterable[Run]) -> list[str]:
    found = set()
    for run in runs:
        record = run.sharpness or {}
        images = f"{record.get('batches')} batches of {record.get('batch_size')}"
        found.add(f"BatchNorm: {record.get('batch_norm')}; {record.get('adversary')}; {images}")
    return [f"Loss difference of the selected scores (Eq. 12): {' | '.join(sorted(found))}."] if found else []


def substituted(entry: Entry) -> list[str]:
    """That the paper's numbers are of another data set."""
    others = dict.fromkeys(DATA[cell.printed] for cell in entry.cells if not cell.comparable)
    if not others:
        return []
    measured = entry.substitute
    return [f"The paper's numbers are of {', '.join(others)}, the measured ones of {measured}: no difference is shown."]


def gammas(entry: Entry, library: Library) -> list[str]:
    """The gamma of settings that the paper has none for."""
    found: dict[float, list[str]] = {}
    for cell in dict.fromkeys(entry.cells):
        gamma = library.gamma(cell)
        if gamma is not None and paper_gamma(cell) is None and cell.method != "dense":
            names = found.setdefault(gamma, [])
            name = f"{NETWORKS[cell.network]} {METHODS[cell.method]}"
            if name not in names:
                names.append(name)
    said = [f"{gamma:g} ({', '.join(names)})" for gamma, names in sorted(found.items())]
    return [f"γ: {'; '.join(said)}, the commonest among the runs."] if said else []


def overheads(entry: Entry, library: Library) -> Grid:
    """Table 7: hours of the search, and the time that S2AP adds over Orig. and as a share of its own."""
    settings = dict.fromkeys((cell.network, cell.data, cell.method, cell.printed) for cell in entry.cells)
    comparable = all(cell.comparable for cell in entry.cells)
    rows, records, devices = [], [], set()
    for setting in settings:
        cells = [c for c in entry.cells if (c.network, c.data, c.method, c.printed) == setting]
        by_cell = [_searches(library, cell, entry.arms) for cell in cells]
        pairs = [pair for found in by_cell for pair in found.values()]
        measured = _times(pairs)
        devices |= {str(run.environment.get("device")) for pair in pairs for run in pair}
        cell = cells[0]
        paper = {
            "orig": printed(entry, cell, "hours", "orig")[0],
            "s2ap": printed(entry, cell, "hours", "s2ap")[0],
            "over_orig": printed(entry, cell, "overhead", None)[0],
        }
        differences = {name: measured[name].mean - value for name, value in paper.items()} if cell.comparable else {}
        marked = disagrees(entry, cell, "overhead")
        shown = [Text(measured[name].text(_hours) or NOT_RUN) for name in ("orig", "s2ap")]
        shown += [Text(measured[name].text(_percent)) for name in ("over_orig", "over_s2ap", "after_warmup")]
        shown.append(Text(str(len(pairs) or "")))
        shown += [Text(_hours(paper[name])) for name in ("orig", "s2ap")]
        shown.append(Text(_signed(paper["over_orig"]), mark=PAPER if marked else ""))
        if comparable:
            shown += [Text(_signed(differences[name])) for name in paper]
        budgets = [c.budget for c, found in zip(cells, by_cell, strict=True) if found]
        rows.append([Text(NETWORKS[cell.network]), Text(DATA.get(cell.data, cell.data)), Text(METHODS[cell.method]),
                     Text(", ".join(budgets)), *shown])  # fmt: skip
        for name, value in measured.items():
            records.append(
                {
                    **_about(entry, cell, arm=name if name in entry.arms else None),
                    "sparsity": None,
                    "metric": "hours" if name in entry.arms else f"overhead_{name}",
                    "measured": value.mean,
                    "std": value.std,
                    "seeds": min((len(found) for found in by_cell if found), default=0),
                    "paper": paper.get(name),
                    "difference": differences.get(name),
                    "paper_disagrees": marked if name == "over_orig" else None,
                }
            )
    paper_heads = ["Orig. (h)", "S2AP (h)", "Overhead (%)"]
    heads = [("", ["Network", "Data", "Method", "Sparsities"]),
             ("measured", ["Orig. (h)", "S2AP (h)", "over Orig. (%)", "over S2AP (%)", "after warm-up (%)", "Pairs"]),
             ("paper", paper_heads)]  # fmt: skip
    caption = [
        "Time of the search's epochs, mean ± standard deviation over pairs of searches, one of each arm, that share "
        "sparsity and seed" + (f", on {', '.join(sorted(devices))}." if devices else "."),
        "Overhead: 100 (S2AP − Orig.) / Orig., and as a share of S2AP's time; after warm-up: over Orig., of the epochs "
        "without warm-up alone, as the paper times them.",
        f"{PAPER} the paper's overhead is not the one over Orig. that follows from its hours. The paper does not say "
        "which method it timed.",
    ]
    return Grid(
        id=entry.id,
        heading=entry.heading,
        groups=[*heads, *([("measured − paper", paper_heads)] if comparable else [])],
        rows=rows,
        caption=[*caption, *substituted(entry), *gammas(entry, library)],
        records=_frame(records),
    )


@dataclass(frozen=True)
class _Spread:
    """A mean with its standard deviation; NaN where there is none."""

    mean: float
    std: float

    def text(self, shown: Callable[[float], str]) -> str:
        return shown(self.mean) if math.isnan(self.std) else f"{shown(self.mean)} ± {shown(self.std).lstrip('+')}"


def _searches(library: Library, cell: Cell, arms: Sequence[str]) -> dict[int, tuple[Run, Run]]:
    """Both arms' runs of the seeds that both have."""
    first, second = (library.find(cell, arm, "timing") for arm in arms)
    return {seed: (first[seed], second[seed]) for seed in first if seed in second}


def _times(pairs: Sequence[tuple[Run, Run]]) -> dict[str, _Spread]:
    """Hours of each arm and what the second adds in percent: of the mean times, and its spread over the pairs."""
    if not pairs:
        return dict.fromkeys(("orig", "s2ap", "over_orig", "over_s2ap", "after_warmup"), _Spread(math.nan, math.nan))
    whole = np.array([[seconds(run) for run in pair] for pair in pairs]).T
    # Both arms' epochs after S2AP's warm-up: Orig. has none, whatever its config says.
    later = np.array([[seconds(run, pair[1].config.minimizer.warmup) for run in pair] for pair in pairs]).T

    def spread(of: Callable[[Any, Any], Any], times: np.ndarray) -> _Spread:
        std = float(np.std(of(*times), ddof=1)) if len(pairs) > 1 else math.nan
        return _Spread(float(of(*times.mean(axis=1))), std)

    return {
        "orig": spread(lambda orig, s2ap: orig / SECONDS_PER_HOUR, whole),
        "s2ap": spread(lambda orig, s2ap: s2ap / SECONDS_PER_HOUR, whole),
        "over_orig": spread(lambda orig, s2ap: 100 * (s2ap / orig - 1), whole),
        "over_s2ap": spread(lambda orig, s2ap: 100 * (1 - orig / s2ap), whole),
        "after_warmup": spread(lambda orig, s2ap: 100 * (s2ap / orig - 1), later),
    }


def seconds(run: Run, warmup: int = 0) -> float:
    """What the search's epochs after the first ``warmup`` took; NaN if there are none."""
    rows = run.timing[(run.timing["stage"] == "prune") & (run.timing["epoch"] > warmup)]
    return float(rows["seconds"].sum()) if len(rows) else math.nan


def _hours(hours: float) -> str:
    return "" if math.isnan(hours) else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


def _percent(share: float) -> str:
    return _signed(share, 1)
