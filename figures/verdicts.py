"""Which arm of a table's rows is better: paired differences over seeds, held together over the table's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from figures.catalogue import Entry
from figures.numbers import Line
from s2ap_core.errors import InputError
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.comparison.metrics import unit_means
from s2ap_diag.comparison.statistics import LEVEL, Kind, PairedDifference, compare, holm, paired_difference


@dataclass(frozen=True)
class Verdict:
    """What a row says of its two arms, in the metric that the table judges by, its last.

    Attributes:
        difference: second arm minus first, in the table's unit; None where they share no seed, or cannot be compared.
        adjusted_p: p-value after Holm's correction over the table's rows, None with fewer than three seeds.
        better: the arm that is better beyond chance.
        mcnemar: by seed, whether its two networks differ.
        reason: why arms with runs cannot be compared.
    """

    difference: PairedDifference | None = None
    adjusted_p: float | None = None
    better: str | None = None
    mcnemar: Mapping[int, float] = field(default_factory=dict)
    reason: str | None = None


def verdicts(entry: Entry, lines: Sequence[Line]) -> list[Verdict]:
    """Judge each row; an arm is better where the p-value, corrected over all rows, is below 0.05."""
    compared = [_compared(entry, line) for line in lines]
    adjusted = holm([verdict.difference.p if verdict.difference else None for verdict in compared])
    return [
        replace(verdict, adjusted_p=p, better=_better(entry, verdict, p))
        for verdict, p in zip(compared, adjusted, strict=True)
    ]


def _better(entry: Entry, verdict: Verdict, adjusted_p: float | None) -> str | None:
    if verdict.difference is None or adjusted_p is None or adjusted_p >= 1 - LEVEL:
        return None
    lower = entry.metrics[-1] == "loss_difference"
    return entry.arms[(verdict.difference.mean > 0) != lower]


def _compared(entry: Entry, line: Line) -> Verdict:
    """Compare image by image where there are evaluations, else the readings of the seeds that both arms have."""
    metric = entry.metrics[-1]
    if len(entry.arms) < 2 or not all(arm in line.readings for arm in entry.arms):
        return Verdict()
    if entry.kind == "accuracy":
        kind: Kind = "clean" if metric == "clean_accuracy" else "robust"
        first, second = (line.evaluations[arm] for arm in entry.arms)
        try:
            comparison = compare(first, second, kind)
        except InputError as error:
            return Verdict(reason=str(error))
        return Verdict(comparison.difference.scaled(100), mcnemar=comparison.mcnemar)
    before, after = (line.readings[arm][metric].by_seed for arm in entry.arms)
    units = {run.config.seed: seed_of(run) for run in line.runs[entry.arms[0]]}
    differences = {units[seed]: after[seed] - before[seed] for seed in sorted(before.keys() & after.keys())}
    return Verdict(paired_difference(unit_means(differences))) if differences else Verdict()
