"""What the paper claims of S2AP, tested on runs: effect, interval, verdict, and the seeds that would decide it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from figures.catalogue import ARMS, DATA, METHODS, Cell, in_words
from figures.matching import Library
from figures.rendered_table import RenderedTable, Text
from s2ap_core.errors import InputError
from s2ap_diag.comparison.arms import SettingComparison, compare_arms
from s2ap_diag.comparison.metrics import METRICS, TRACKED, MetricComparison, many, spanned
from s2ap_diag.comparison.statistics import LEAST_SEEDS, LEVEL, holm, tested

Verdict = Literal["supported", "contradicted", "undecided"]

NAMES = {**ARMS, "orig-awp": "Orig. + AWP", "s2ap-plain": "S2AP, plain"}
"""Arms in words; a crossed arm finetunes one arm's mask as the other arm does."""


@dataclass(frozen=True)
class Claim:
    """The claim that the second arm is better than the first in a metric.

    Attributes:
        statement: in words, with where the paper makes it.
        need: what it reads of a run, in the words of :meth:`figures.matching.Library.holds`.
    """

    statement: str
    metric: str
    need: str
    first: str = "orig"
    second: str = "s2ap"


SPECTRA = {"lambda_max_live": "live λ_max", "lambda_max": "λ_max"}

MODES = {"running": "BatchNorm running", "batch": "BatchNorm batch", "none": "without BatchNorm"}

CLAIMS = (
    *(
        Claim(f"lower {word} over the search, {said} (Figs. 1c, 8–17)", f"tracked_{spectrum}_{mode}", "masks")
        for spectrum, word in SPECTRA.items()
        for mode, said in MODES.items()
    ),
    Claim("lower loss difference of the mask's scores (Fig. 3, Table 13)", "loss_difference", "sharpness"),
    Claim("lower h after the warm-up (Figs. 1b, 4)", "h_after_warmup", "masks"),
    Claim("more robust raw masks (Table 5)", "mask_robust", "evaluate-prune"),
    Claim("more robust finetuned networks (Tables 1, 2)", "finetuned_robust", "evaluate-finetune"),
    Claim("— by the mask, finetuned plainly", "finetuned_robust", "evaluate-finetune", "orig", "s2ap-plain"),
    Claim("— by the mask, finetuned with AWP", "finetuned_robust", "evaluate-finetune", "orig-awp", "s2ap"),
    Claim("— by AWP, on the same mask", "finetuned_robust", "evaluate-finetune", "orig", "orig-awp"),
    Claim("smaller gap of clean and robust accuracy (Sect. 4.2)", "finetuned_gap", "evaluate-finetune"),
    Claim(
        "S2AP's masks more robust than AWP's in the search (Table 12)", "mask_robust", "evaluate-prune", "awp", "s2ap"
    ),
)


@dataclass(frozen=True)
class Test:
    """The test of a claim in a setting.

    Attributes:
        adjusted_p: after Holm's correction over the settings of the claim, None with fewer than three seeds.
        tests: how many settings these are.
    """

    claim: Claim
    cell: Cell
    compared: MetricComparison
    seeds: int
    adjusted_p: float | None
    tests: int

    @property
    def verdict(self) -> Verdict:
        """What the interval says, given the other settings."""
        if self.adjusted_p is None or self.adjusted_p >= 1 - LEVEL:
            return "undecided"
        return "supported" if self.compared.better == 1 else "contradicted"


def judge_claims(library: Library) -> tuple[list[Test], list[str]]:
    """Test each claim in each setting that has runs of both arms; say also why a claim could not be tested."""
    tests, notes = [], []
    arms: dict[Cell, set[str]] = defaultdict(set)
    for placed in library.placed_runs:
        arms[placed.cell].add(placed.arm)
    for claim in CLAIMS:
        settings: list[tuple[Cell, SettingComparison]] = []
        for cell in sorted(arms, key=lambda cell: cell.name):
            if not {claim.first, claim.second} <= arms[cell]:
                continue
            first, second = (list(library.find(cell, arm, claim.need).values()) for arm in (claim.first, claim.second))
            if not first or not second:
                continue
            try:
                (compared,) = compare_arms(first, second, {claim.metric: (METRICS | TRACKED)[claim.metric]})
            except InputError as error:
                notes.append(f"{claim.statement}: {cell.name}: {error}")
                continue
            notes += [f"{claim.statement}: {cell.name}: {note}" for note in compared.notes]
            if compared.metrics:
                settings.append((cell, compared))
        tests += _judged(claim, settings)
    return tests, notes


def _judged(claim: Claim, settings: Sequence[tuple[Cell, SettingComparison]]) -> list[Test]:
    metrics = [compared.metrics[claim.metric] for _, compared in settings]
    p_values = [metric.difference.p for metric in metrics]
    adjusted, count = holm(p_values), tested(p_values)
    return [
        Test(claim, cell, metric, len(compared.seeds), p, count)
        for (cell, compared), metric, p in zip(settings, metrics, adjusted, strict=True)
    ]


def claims_table(library: Library) -> RenderedTable:
    """Lay out the tests: claim, setting, both arms, difference with interval, verdict, seeds, power."""
    tests, notes = judge_claims(library)
    shown = [test for test in tests if test.seeds >= LEAST_SEEDS] or tests
    unshown = len(tests) - len(shown)
    return RenderedTable(
        id="claims",
        heading="Claims: what the paper says of S2AP, on these runs",
        groups=[
            ("", ["Claim", "Network", "Data", "Method", "Sparsity"]),
            ("measured", ["Arms", "First", "Second", "Difference [95 %]", "Verdict", "Seeds", "Seeds needed"]),
        ],
        rows=[_row(test) for test in shown],
        caption=[
            "Difference: second arm minus first over paired seeds, in points for accuracies, as a ratio for λ_max.",
            "Supported or contradicted where it is beyond chance at 5 % after Holm's correction over the settings of "
            "the claim, else undecided. Seeds needed: to find a difference as large as that seen in 80 of 100 trials, "
            "at the level that the correction asks of the claim's first setting.",
            *(
                [f"{unshown} tests of fewer than three seeds, which decide nothing, are in the CSV alone."]
                if unshown
                else []
            ),
        ],
        records=pd.DataFrame([_record(test) for test in tests]),
        notes=notes,
    )


def _row(test: Test) -> list[Text]:
    cell, compared = test.cell, test.compared
    decided = test.verdict != "undecided"
    cells = [
        test.claim.statement,
        in_words(cell.network),
        DATA[cell.data],
        METHODS[cell.method],
        cell.budget,
        f"{NAMES[test.claim.first]}, {NAMES[test.claim.second]}",
        f"{compared.first:.4g}",
        f"{compared.second:.4g}",
        spanned(compared.difference, compared.unit),
    ]
    testable = compared.difference.p is not None
    needed = many(compared.difference.seeds_needed(tests=test.tests)) if testable else "three or more first"
    return [*map(Text, cells), Text(test.verdict, bold=decided), Text(str(test.seeds)), Text(needed)]


def _record(test: Test) -> dict[str, Any]:
    cell, compared = test.cell, test.compared
    low, high = compared.difference.interval or (None, None)
    return {
        "claim": test.claim.statement,
        "metric": compared.name,
        "data": cell.data,
        "network": cell.network,
        "method": cell.method,
        "sparsity": cell.sparsity,
        "flops_reduction": cell.flops_reduction,
        "first_arm": test.claim.first,
        "second_arm": test.claim.second,
        "first": compared.first,
        "second": compared.second,
        "unit": compared.unit,
        "difference": compared.difference.mean,
        "interval_low": low,
        "interval_high": high,
        "p": compared.difference.p,
        "adjusted_p": test.adjusted_p,
        "verdict": test.verdict,
        "seeds": test.seeds,
        "seeds_needed": compared.difference.seeds_needed(tests=test.tests),
    }
