"""What the seeds allow to say of the arms of a group: each held against the first, metric by metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from s2ap_core.errors import InputError
from s2ap_diag.comparison.arms import SettingComparison, adjusted_p, compare_setting, tests_of
from s2ap_diag.comparison.metrics import (
    METRICS,
    PRINCIPAL,
    TRACKED,
    MetricComparison,
    Pairs,
    Reader,
    Unlike,
    many,
    spanned,
)
from s2ap_diag.comparison.statistics import LEAST_SEEDS, LEVEL
from s2ap_diag.report.groups import Group

State = Literal["better", "worse", "undecided", "few"]

MARKS: Mapping[State, str] = {"better": "▲", "worse": "▼", "undecided": "○", "few": "·"}

HEADINGS = {
    "mask_robust": "raw mask, robust",
    "finetuned_robust": "finetuned, robust",
    "finetuned_clean": "finetuned, clean",
    "lambda_max_live": "live λ_max",
    "tracked_lambda_max_live_running": "live λ_max in the search, BatchNorm running",
    "tracked_lambda_max_live_batch": "live λ_max in the search, BatchNorm batch",
    "tracked_lambda_max_live_none": "live λ_max in the search",
    "loss_difference": "ΔL",
    "h_after_warmup": "h after the warm-up",
}
"""What is compared, in the order of the columns. The tracked readings are told where none was measured at the end."""

UNITS = {"points": "points", "log10": "ratio", "": ""}


@dataclass(frozen=True)
class Cell:
    """One metric's difference.

    Attributes:
        difference: its mean.
        interval: of the difference, empty where there is none.
        means: of both arms.
        state: of the second arm against the first.
        decides: what would decide it, empty where it is decided.
    """

    difference: str
    interval: str
    means: str
    state: State
    decides: str

    @property
    def mark(self) -> str:
        """A mark that needs no colour."""
        return MARKS[self.state]


@dataclass(frozen=True)
class Row:
    """One arm against the first, in one facet."""

    facet: str
    arm: str
    seeds: int
    cells: Sequence[Cell | None]
    notes: Sequence[str]
    settings: str


@dataclass(frozen=True)
class Verdicts:
    """The answer of a group.

    Attributes:
        reference: the arm that others are held against.
        sentences: the answer in words: of one setting one for each principal metric, of several a count; where there
            are many arms, one for each.
        columns: headings of the rows' cells.
    """

    reference: str
    sentences: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Row]


FEW_ARMS = 4
"""So many arms beside the reference have a sentence for each metric."""


def verdicts(group: Group) -> Verdicts | None:
    """Hold each arm against the first one; None where there is a single arm."""
    if len(group.arms) < 2:
        return None
    reference, *others = group.arms
    found: list[tuple[str, SettingComparison, Mapping[tuple[str, str], float]]] = []
    sentences, failures, silent = [], [], []
    for arm in others:
        compared = []
        for facet in group.facets:
            if arm in facet.arms and reference in facet.arms:
                try:
                    compared.append(compare_setting(facet.title, facet.arms[reference], facet.arms[arm], READERS))
                except InputError as error:
                    failures.append(f"{arm} and {reference}: {error}")
        p_values = adjusted_p(compared)
        found += [(arm, one, p_values) for one in compared]
        said = _sentences((reference, arm), compared, p_values, briefly=len(others) > FEW_ARMS)
        sentences += said
        silent += [arm] if compared and not said else []
    metrics = _columns([one for _, one, _ in found])
    rows = [_row(arm, one, p_values, metrics) for arm, one, p_values in found]
    order = {facet.title: index for index, facet in enumerate(group.facets)}
    # What has seeds enough first: it is what the answer rests on.
    rows.sort(key=lambda row: (row.seeds < LEAST_SEEDS, order[row.facet]))
    if silent:
        sentences.append(f"One or two seeds say nothing of: {'; '.join(silent)}")
    return Verdicts(reference, [*sentences, *failures], [_heading(name, found) for name in metrics], rows)


def _tolerant(reader: Reader) -> Reader:
    """Let a metric that cannot be compared, as of two attacks, be said and not end the report."""

    def read(name: str, pairs: Pairs) -> MetricComparison | None:
        try:
            return reader(name, pairs)
        except InputError as error:
            raise Unlike(str(error)) from error

    return read


READERS = {name: _tolerant({**METRICS, **TRACKED}[name]) for name in HEADINGS}


def _columns(compared: Sequence[SettingComparison]) -> list[str]:
    there = [name for name in HEADINGS if any(name in one.metrics for one in compared)]
    measured = "lambda_max_live" in there
    return [name for name in there if not (measured and name.startswith("tracked_"))]


def _heading(name: str, found: Sequence[tuple[str, SettingComparison, Mapping[tuple[str, str], float]]]) -> str:
    conditions = dict.fromkeys(one.metrics[name].condition for _, one, _ in found if name in one.metrics)
    unit = UNITS[next(one.metrics[name].unit for _, one, _ in found if name in one.metrics)]
    return ", ".join(filter(None, (" ".join(filter(None, (HEADINGS[name], *conditions))), unit)))


def _row(arm: str, one: SettingComparison, p_values: Mapping[tuple[str, str], float], metrics: Sequence[str]) -> Row:
    cells = [
        _cell(one.metrics[name], p_values.get((one.setting, name)), tests_of(p_values, name))
        if name in one.metrics
        else None
        for name in metrics
    ]
    settings = "; ".join(f"{key} {a} | {b}" for key, (a, b) in one.config_differences.items())
    return Row(one.setting, arm, len(one.seeds), cells, one.notes, settings)


def _cell(metric: MetricComparison, p: float | None, tests: int) -> Cell:
    difference = metric.difference
    needed = difference.seeds_needed(tests=tests)
    if p is None:
        state: State = "few"
        few = len(difference.by_unit) < LEAST_SEEDS
        decides = f"an interval takes {LEAST_SEEDS} seeds" if few else "seeds that differ: these show no spread"
    elif p < 1 - LEVEL:
        state, decides = ("better" if metric.better else "worse"), ""
    else:
        state = "undecided"
        decides = f"{many(needed)} if as seen"
        point = difference.seeds_needed(1.0, tests) if metric.unit == "points" else None
        if point is not None:
            decides += f", {point} for one point"
    digits = ".1f" if metric.unit == "points" else ".3g"
    means = f"{metric.first:{digits}} → {metric.second:{digits}}"
    mean, _, interval = spanned(difference, metric.unit).partition(" ")
    return Cell(mean, interval, means, state, decides)


def _sentences(
    arms: tuple[str, str],
    compared: Sequence[SettingComparison],
    p_values: Mapping[tuple[str, str], float],
    *,
    briefly: bool,
) -> list[str]:
    """Say the answer for the principal metrics: of one setting as ``compare`` does, of several as a count.

    Args:
        briefly: in one sentence, and in none where no metric has seeds enough.
    """
    having = {name: [one for one in compared if name in one.metrics] for name in PRINCIPAL}
    if len(compared) == 1 and not briefly:
        verdicts = [
            (name, one.metrics[name].verdict(arms, p_values.get((one.setting, name)), tests_of(p_values, name)))
            for name, ones in having.items()
            for one in ones
        ]
        return [f"{arms[1]} against {arms[0]}, {HEADINGS[n]}: {said.partition(': ')[2]}" for n, said in verdicts]
    words = {
        "better": "better beyond chance", "worse": "worse beyond chance", "undecided": "undecided",
        "few": "of too few seeds",
    }  # fmt: skip
    counted, decided = [], 0
    for name, ones in having.items():
        tests = tests_of(p_values, name)
        states = Counter(_cell(one.metrics[name], p_values.get((one.setting, name)), tests).state for one in ones)
        if ones and len(compared) == 1:
            metric = ones[0].metrics[name]
            counted.append(f"{HEADINGS[name]} {words[next(iter(states))]}, {spanned(metric.difference, metric.unit)}")
        elif ones:
            counts = ", ".join(f"{words[state]} in {states[state]}" for state in MARKS if states[state])
            counted.append(f"{HEADINGS[name]} {counts}")
        decided += len(ones) - states["few"]
    if not counted or (briefly and not decided):
        return []
    settings = f", {len(compared)} settings" if len(compared) > 1 else ""
    return [f"{arms[1]} against {arms[0]}{settings}: {'; '.join(counted)}"]
