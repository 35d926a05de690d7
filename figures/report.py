"""Renders entries of the catalogue into a folder, with the results that they rest on and a page that shows all."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from figures.catalogue import Entry, repeated
from figures.drawings import FIGURES
from figures.grid import Grid, escape_markdown, to_latex, to_markdown
from figures.matching import Library, Place, loss_differences
from figures.tables import compare_arms, overheads, seconds
from s2ap_core.runs import write_file
from s2ap_diag.tables import to_csv

TABLES = {"accuracy": compare_arms, "corruptions": compare_arms, "sharpness": compare_arms, "overhead": overheads}

RESULTS = (
    "run", "stage", "data", "network", "method", "arm", "sparsity", "flops_reduction", "gamma", "seed", "metric",
    "value",
)  # fmt: skip
"""Columns of ``results.csv``; accuracies in percent."""


@dataclass
class Rendered:
    """What was written of an entry: the page's part and what a reader has to be warned of."""

    entry: Entry
    markdown: str
    notes: list[str] = field(default_factory=list)


def render(entries: Sequence[Entry], library: Library, out: Path, command: Sequence[str] = ()) -> list[Rendered]:
    """Write each entry's files, ``results.csv`` and ``README.md``.

    Damaged runs join ``library.skipped`` first, so that no entry uses what another had to leave out.

    Args:
        command: the words that a reader types to get the same.

    Raises:
        InputError: if ``out`` cannot be written to.
    """
    library.drop_damaged(dict.fromkeys(need for entry in entries for need in entry.needs))
    rendered = [_render(entry, library, out) for entry in entries]
    write_file(out / "results.csv", to_csv(results(library)))
    write_file(out / "README.md", page(rendered, library, command))
    return rendered


def warnings(rendered: Sequence[Rendered], library: Library) -> list[str]:
    """One line for each run that was left out or is odd."""
    skipped = [f"skipped: {entry.path}: {_without(entry.reason, entry.path)}" for entry in library.skipped]
    conflicts = list(library.conflicts.values())
    return list(dict.fromkeys([*skipped, *conflicts, *(note for part in rendered for note in part.notes)]))


def listing(entries: Sequence[Entry], library: Library) -> list[list[Any]]:
    """For each entry: what it needs, and how many of its runs are there."""
    again = repeated(entries)
    rows: list[list[Any]] = []
    for entry in entries:
        found = [_seeds(entry, library, cell, arm) for cell in entry.cells for arm in entry.arms]
        there = [seeds for seeds in found if seeds]
        span = sorted({min(there), max(there)}) if there else []
        note = f"as {again[entry.id]}" if entry.id in again else ""
        shown = "–".join(map(str, span))
        count, title = f"{len(there)} of {len(found)}", entry.heading.partition(": ")[2]
        rows.append([entry.id, title, ", ".join(entry.needs), count, shown, note])
    return rows


def results(library: Library) -> pd.DataFrame:
    """The results of the runs that were used, a row for each run, stage and metric."""
    rows = [
        {
            "run": str(path),
            "data": place.cell.data,
            "network": place.cell.network,
            "method": place.cell.method,
            "arm": place.arm,
            "sparsity": place.cell.sparsity,
            "flops_reduction": place.cell.flops_reduction,
            "gamma": place.gamma,
            "seed": place.seed,
            **row,
        }
        for path, place in sorted(library.used.items())
        for row in _results_of(place)
    ]
    return pd.DataFrame(rows, columns=list(RESULTS))


def page(rendered: Sequence[Rendered], library: Library, command: Sequence[str]) -> str:
    """``README.md``: what was rendered, from which code, and what was left out."""
    commits = sorted({str(place.run.environment.get("commit")) for place in library.used.values()})
    parts = ["# Tables and figures from runs\n"]
    if command:
        parts.append(f"```\n{shlex.join(command)}\n```\n")
    parts.append(
        f"{len(library.used)} runs, of the code at commit {escape_markdown(', '.join(commits))}; their numbers are in "
        "[results.csv](results.csv).\n"
        if library.used
        else "No runs were used.\n"
    )
    parts += [part.markdown for part in rendered]
    said = warnings(rendered, library)
    if said:
        parts.append("## Left out, and to be known\n")
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in said) + "\n")
    return "\n".join(parts)


def _render(entry: Entry, library: Library, out: Path) -> Rendered:
    if entry.is_table:
        return _write_table(entry, TABLES[entry.kind](entry, library), out)
    files = [out / f"{entry.id}.{ending}" for ending in ("png", "pdf")]
    drawing = FIGURES[entry.kind](entry, library, files)
    write_file(out / f"{entry.id}.csv", to_csv(drawing.data))
    caption = escape_markdown(" ".join([f"{entry.heading}.", *drawing.caption]))
    links = f"[PDF]({entry.id}.pdf), [numbers]({entry.id}.csv)"
    return Rendered(entry, f"## {_title(entry)}\n\n![{_title(entry)}]({entry.id}.png)\n\n{caption} {links}\n",
                    [f"{entry.id}: {note}" for note in drawing.notes])  # fmt: skip


def _write_table(entry: Entry, grid: Grid, out: Path) -> Rendered:
    markdown = to_markdown(grid)
    write_file(out / f"{entry.id}.csv", to_csv(grid.records))
    write_file(out / f"{entry.id}.md", markdown)
    write_file(out / f"{entry.id}.tex", to_latex(grid))
    links = f"[CSV]({entry.id}.csv), [LaTeX]({entry.id}.tex)"
    notes = [f"{entry.id}: {note}" for note in grid.notes]
    return Rendered(entry, f"## {_title(entry)}\n\n{markdown}\n{links}\n", notes)


def _title(entry: Entry) -> str:
    return entry.heading.partition(":")[0]


def _without(reason: str, path: Path) -> str:
    """A reason whose beginning does not repeat the run's path."""
    return reason.removeprefix(f"{path}: ").removeprefix(f"{path}/")


def _seeds(entry: Entry, library: Library, cell: Any, arm: str) -> int:
    """Number of seeds that hold everything that an entry reads; of its gammas, the best furnished."""
    if entry.kind == "gamma":
        (need,) = entry.needs
        return max((len(runs) for runs in library.find_gammas(cell, arm, need).values()), default=0)
    if entry.kind == "corruptions" and not cell.comparable:
        return 0
    seeds = [set(library.find(cell, arm, need)) for need in entry.needs]
    return len(set.intersection(*seeds))


def _results_of(place: Place) -> list[dict[str, Any]]:
    """Stage, metric and value of everything that a run's results hold."""
    run, rows = place.run, []
    for stage in run.config.evaluation.stages:
        summary = run.results.get(f"evaluate-{stage}", {})
        measured = [metric for metric in ("clean_accuracy", "robust_accuracy") if metric in summary]
        rows += [{"stage": stage, "metric": metric, "value": 100 * summary[metric]} for metric in measured]
    if "prune" in run.results:
        rows.append({"stage": "prune", "metric": "hours", "value": seconds(run) / 3600})
        rows += [{"stage": "prune", "metric": f"lambda_max_{mode}", "value": tracked.iloc[-1]}
                 for mode in ("batch", "running") if len(tracked := run.tracked(f"lambda_max_{mode}"))]  # fmt: skip
    if run.sharpness is not None:
        rows += [{"stage": "prune", "metric": f"loss_difference at {rho:g}", "value": value}
                 for rho, value in loss_differences(run).items()]  # fmt: skip
    return rows
