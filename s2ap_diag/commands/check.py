"""``s2ap-diag check``: do finished runs hold what a reviewer would ask of them?"""

from dataclasses import asdict
from pathlib import Path

from s2ap_core.errors import InputError
from s2ap_diag.comparison.claims import tables_in
from s2ap_diag.comparison.conditions import Material, check
from s2ap_diag.comparison.evidence import Evidence, gather
from s2ap_diag.comparison.finding import Finding, gathered
from s2ap_diag.execution.progress import counting
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import count, make_table
from s2ap_diag.reading.results import collect


def run_command(runs: Path, tables: Path | None, output: Output) -> int:
    """Check each run, show what fails and what to know, and return 1 if a condition fails."""
    opened, skipped = collect(runs)
    claiming = tables_in(runs if tables is None else tables)
    if tables is not None and not claiming:
        raise InputError(f"{tables}: holds no table of arms; give the folder that `python -m figures --out` wrote")
    unreadable = [Finding.unreadable(str(one.path), one.reason) for one in skipped]
    evidence: list[Evidence] = []
    with counting("check", len(opened), output.quiet) as advance:
        for run in opened:
            try:
                evidence.append(gather(run))
            except InputError as error:
                unreadable.append(Finding.unreadable(str(run.path), str(error)))
            advance()
    if not (evidence or claiming):
        reason = f"{runs}: holds no run; give a run or a folder of runs"
        raise InputError(unreadable[0].remedy if unreadable else reason)
    findings = [*unreadable, *check(Material(evidence, claiming))]
    failures = [finding for finding in findings if not finding.passed]
    shown = [*failures, *gathered([finding for finding in findings if finding.is_note])]
    holding = f"{len(findings) - len(failures)} conditions on {count(len(evidence), 'run')} hold"
    title = f"{holding}, {len(failures)} fail" if failures else holding
    rows = [["holds" if f.passed else "fails", f.condition, f.run, f.value, f.limit, f.remedy] for f in shown]
    table = make_table(title, ["", "condition", "run", "value", "limit", "remedy"], rows, gives_way=["limit", "value"])
    output.emit([asdict(finding) for finding in findings], table)
    return 1 if failures else 0
