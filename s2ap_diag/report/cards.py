"""The answer, group by group: what the seeds allow to say, what a reviewer would ask, the charts of all arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s2ap_core.errors import InputError
from s2ap_diag.comparison.conditions import Material, check
from s2ap_diag.comparison.cost import Cost
from s2ap_diag.comparison.evidence import Evidence, gather
from s2ap_diag.comparison.finding import Finding, gathered
from s2ap_diag.reading.results import Run
from s2ap_diag.report.groups import Group
from s2ap_diag.report.maps import LayerMaps, Moved, moved_most
from s2ap_diag.report.overlays import Panel, overlays
from s2ap_diag.report.verdicts import Verdicts, verdicts


@dataclass(frozen=True)
class Checked:
    """What ``check`` found of some runs.

    Attributes:
        holding, failed: number of conditions that hold, and that fail.
        failing, notes: the first of each condition, which says how many there are.
    """

    holding: int
    failed: int
    failing: Sequence[Finding]
    notes: Sequence[Finding]

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> "Checked":
        """Sum findings up."""
        holding = sum(finding.passed for finding in findings)
        return cls(
            holding,
            len(findings) - holding,
            gathered([finding for finding in findings if not finding.passed]),
            gathered([finding for finding in findings if finding.is_note]),
        )


@dataclass(frozen=True)
class Card:
    """What the page says of a group.

    Attributes:
        arms: each with its number of runs and the number that decides its colour and marker.
        moved: the layers of each facet and arm that changed hands most.
        left_out: runs that say the same as another one.
    """

    title: str
    arms: Sequence[tuple[str, int, int]]
    verdicts: Verdicts | None
    checked: Checked
    panels: Sequence[Panel]
    moved: Sequence[Moved]
    left_out: Sequence[str]


def make_cards(
    findings: Sequence[Finding], groups: Sequence[Group], numbers: Mapping[str, int], maps: Mapping[str, LayerMaps]
) -> tuple[list[Card], Checked | None]:
    """Make a card of each group that has two runs or more.

    Args:
        findings: what ``check`` found of all runs.
        numbers, maps: of the runs that the page shows, by their path.

    Returns:
        The cards, and what ``check`` found of the runs that are on none of them, if there are such.

    Raises:
        InputError: if a file that ``runs`` were read from has gone since.
    """
    cards, shown = [], set()
    for group in groups:
        if len(group.runs) > 1:
            cards.append(_card(group, findings, numbers, maps))
            shown |= {str(run.path) for run in group.runs}
    others = [finding for finding in findings if not _is_of(finding, shown)]
    return cards, Checked.of(others) if others else None


def _card(group: Group, findings: Sequence[Finding], numbers: Mapping[str, int], maps: Mapping[str, LayerMaps]) -> Card:
    paths = {str(run.path) for run in group.runs}
    return Card(
        title=group.title,
        arms=[
            (arm, sum(len(facet.arms.get(arm, ())) for facet in group.facets), group.marks[arm]) for arm in group.arms
        ],
        verdicts=verdicts(group),
        checked=Checked.of([finding for finding in findings if _is_of(finding, paths)]),
        panels=overlays(group, numbers),
        moved=moved_most(group, maps),
        left_out=[str(run.path) for run in group.left_out],
    )


def check_runs(runs: Sequence[Run]) -> tuple[list[Finding], dict[str, Cost]]:
    """Ask what ``check`` asks; give its findings, and by the path of a run what its mask costs."""
    evidence: list[Evidence] = []
    unreadable = []
    for run in runs:
        try:
            evidence.append(gather(run))
        except InputError as error:
            unreadable.append(Finding.unreadable(str(run.path), str(error)))
    costs = {one.run.path.as_posix(): one.budget.cost for one in evidence if one.budget is not None}
    return [*unreadable, *check(Material(evidence))], costs


def _is_of(finding: Finding, paths: set[str]) -> bool:
    """Tell whether a finding is of one of these runs, or of several of which the first is one of them."""
    return finding.run in paths or finding.run.rpartition(" and ")[0] in paths
