"""Renders entries of the catalogue into a folder, with the results that they rest on and a page that shows all."""

import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from figures.afterwards import loss_differences
from figures.catalogue import Entry, repeated
from figures.claims import claims_table
from figures.dose import Study, dose_table, draw_doses, studies
from figures.drawings import FIGURES
from figures.matching import Library, PlacedRun
from figures.overheads import overheads, seconds
from figures.rendered_table import RenderedTable, escape_markdown, to_latex, to_markdown
from figures.tables import compare_arms
from s2ap_core.files.atomic import write_file
from s2ap_diag.output.tables import to_csv
from s2ap_diag.reading.results import Run

TABLES = {"accuracy": compare_arms, "corruptions": compare_arms, "sharpness": compare_arms, "overhead": overheads}

KEY = (
    "stage", "data", "network", "method", "arm", "sparsity", "flops_reduction", "gamma", "objective", "beta",
    "train_norm", "train_eps", "train_step", "train_steps", "seed", "attack", "norm", "eps", "n", "metric",
)  # fmt: skip
"""Columns of ``results.csv`` that say what a value is of: no two rows agree in all of them. Empty where they do not
apply; train_* is the objective's adversary, attack, norm, eps and n are those of an accuracy."""

RESULTS = ("run", *KEY, "value")
"""Columns of ``results.csv``; accuracies in percent."""


@dataclass
class Rendered:
    """What was written of an entry: the page's part and what a reader has to be warned of."""

    markdown: str
    notes: list[str] = field(default_factory=list)


def render(
    entries: Sequence[Entry], library: Library, out: Path, command: Sequence[str] = (), *, claims: bool = False
) -> list[Rendered]:
    """Write each entry's files, ``results.csv`` and ``README.md``.

    Damaged runs join ``library.skipped`` first, so that no entry uses what another had to leave out.

    Args:
        command: the words that a reader types to get the same.
        claims: write the paper's claims, tested, before the entries.

    Raises:
        InputError: if ``out`` cannot be written to.
    """
    library.drop_damaged(dict.fromkeys(need for entry in entries for need in entry.needs))
    rendered = render_claims(claims_of(library), out) if claims else []
    rendered += [_render(entry, library, out) for entry in entries]
    if claims:  # all was rendered
        rendered.append(Rendered("", unused(library, entries)))
    write_file(out / "results.csv", to_csv(results(library)))
    write_file(out / "README.md", page(rendered, library, command))
    return rendered


@dataclass(frozen=True)
class Claims:
    """The paper's claims tested on runs, and what doses of mask flips do; of these two what there are runs of."""

    tables: Sequence[RenderedTable]
    doses: Sequence[Study]


def claims_of(library: Library) -> Claims:
    """Test the claims, and study the doses."""
    claims, found = claims_table(library), studies(library.runs)
    doses = [dose_table(found)] if found else []
    return Claims([claims, *doses] if claims.rows or not doses else doses, found)


def render_claims(claims: Claims, out: Path) -> list[Rendered]:
    """Write the tables of the claims, and the figure of the doses."""
    rendered = [write_table(table, out) for table in claims.tables]
    if claims.doses:
        draw_doses(claims.doses, [out / f"dose.{ending}" for ending in ("png", "pdf")])
        rendered.append(Rendered("![Dose against outcome](dose.png)\n\nDifferences from no perturbation, with 95 % "
                                 "intervals over folds. [PDF](dose.pdf), [numbers](dose.csv)\n"))  # fmt: skip
    return rendered


def unused(library: Library, entries: Sequence[Entry]) -> list[str]:
    """Name the runs that are in no table or figure, by setting and arm, and say why."""
    left: dict[tuple[str, str], list[PlacedRun]] = defaultdict(list)
    disputed = {path for paths in library.conflicts for path in paths}
    for placed in library.placed_runs:
        if placed.run.path not in library.used and placed.run.path not in disputed:
            left[f"{placed.cell.name}, {placed.arm}", why_unused(placed, library, entries)].append(placed)
    return [f"{what}: {len(group)} runs are in no table or figure, such as {group[0].run.path}: {why}"
            for (what, why), group in left.items()]  # fmt: skip


def why_unused(placed: PlacedRun, library: Library, entries: Sequence[Entry]) -> str:
    """Say what of a run's setting no entry has, or what the entries of its setting ask for instead."""
    cell, cells = placed.cell, {cell for entry in entries for cell in entry.cells}
    if cell in cells:
        arms = dict.fromkeys(arm for entry in entries if cell in entry.cells for arm in entry.arms)
        if placed.arm not in arms:
            return f"arms shown are {', '.join(arms)}"
        shown = library.gamma(cell)
        if placed.gamma not in (None, shown):
            return f"its gamma is {placed.gamma:g}, the setting is shown at {shown:g}"
        return "what they show was not measured of it"
    alike = cells
    for name in ("data", "network", "method", "training", "budget"):
        values = sorted({str(getattr(one, name)) for one in alike})
        alike = {one for one in alike if getattr(one, name) == getattr(cell, name)}
        if not alike:
            remedy = f", or --dataset {cell.data} puts it in the place of the paper's" if name == "data" else ""
            return f"{name} {getattr(cell, name)} is none of {', '.join(values)}: --free draws such{remedy}"
    raise AssertionError(f"{cell.name} is among the settings shown")


def warnings(rendered: Sequence[Rendered], library: Library) -> list[str]:
    """Return one line for each run that was left out or is odd."""
    skipped = [f"skipped: {entry.path}: {_without(entry.reason, entry.path)}" for entry in library.skipped]
    left_out = [f"left out: {line}" for line in library.left_out]
    conflicts = list(library.conflicts.values())
    return list(dict.fromkeys([*skipped, *left_out, *conflicts, *(note for part in rendered for note in part.notes)]))


def listing(entries: Sequence[Entry], library: Library | None) -> list[list[Any]]:
    """Say of each entry what it needs, and how many of its runs are there, where there are runs to look at."""
    again = repeated(entries)
    rows: list[list[Any]] = []
    for entry in entries:
        about = [entry.id, entry.heading.partition(": ")[2], ", ".join(entry.needs)]
        if library is None:
            rows.append(about)
            continue
        counts = [_seeds(entry, library, cell, arm) for cell in entry.cells for arm in entry.arms]
        there = [seeds for seeds in counts if seeds]
        span = sorted({min(there), max(there)}) if there else []
        note = f"as {again[entry.id]}" if entry.id in again else ""
        shown = "–".join(map(str, span))
        rows.append([*about, f"{len(there)} of {len(counts)}", shown, note])
    return rows


def results(library: Library) -> pd.DataFrame:
    """Collect what was read of the runs that were used, a row for each run, stage and metric."""
    rows = [
        {"run": str(path), **_columns_of(placed), **row}
        for path, (placed, needs) in sorted(library.used.items())
        for row in _results_of(placed.run, needs)
    ]
    return pd.DataFrame(rows, columns=list(RESULTS)).astype({"train_steps": "Int64", "n": "Int64"})


def _columns_of(placed: PlacedRun) -> dict[str, Any]:
    cell, training = placed.cell, placed.training
    return {
        "data": cell.data,
        "network": cell.network,
        "method": cell.method,
        "arm": placed.arm,
        "sparsity": cell.sparsity,
        "flops_reduction": cell.flops_reduction,
        "gamma": placed.gamma,
        "objective": training.objective,
        "beta": training.beta,
        "train_norm": training.norm,
        "train_eps": training.eps,
        "train_step": training.step,
        "train_steps": training.steps,
        "seed": placed.seed,
    }


def page(rendered: Sequence[Rendered], library: Library, command: Sequence[str]) -> str:
    """Compose the ``README.md``: what was rendered, from which code, and what was left out."""
    commits = sorted({str(placed.run.environment.get("commit")) for placed, _ in library.used.values()})
    parts = ["# Tables and figures from runs\n"]
    if command:
        parts.append(f"```\n{shlex.join(command)}\n```\n")
    parts.append(
        f"{len(library.used)} runs, of the code at commit {escape_markdown(', '.join(commits))}; their numbers are in "
        "[results.csv](results.csv).\n"
        if library.used
        else "No runs were used.\n"
    )
    parts += [part.markdown for part in rendered if part.markdown]
    said = warnings(rendered, library)
    if said:
        parts.append("## Left out, and to be known\n")
        parts.append("\n".join(f"- {escape_markdown(line)}" for line in said) + "\n")
    return "\n".join(parts)


def _render(entry: Entry, library: Library, out: Path) -> Rendered:
    if entry.is_table:
        return write_table(TABLES[entry.kind](entry, library), out)
    files = [out / f"{entry.id}.{ending}" for ending in ("png", "pdf")]
    drawing = FIGURES[entry.kind](entry, library, files)
    write_file(out / f"{entry.id}.csv", to_csv(drawing.data))
    caption = escape_markdown(" ".join([f"{entry.heading}.", *drawing.caption]))
    links = f"[PDF]({entry.id}.pdf), [numbers]({entry.id}.csv)"
    return Rendered(f"## {_title(entry)}\n\n![{_title(entry)}]({entry.id}.png)\n\n{caption} {links}\n",
                    [f"{entry.id}: {note}" for note in drawing.notes])  # fmt: skip


def write_table(table: RenderedTable, out: Path) -> Rendered:
    """Write a table as CSV, Markdown and LaTeX; return the page's part."""
    markdown = to_markdown(table)
    write_file(out / f"{table.id}.csv", to_csv(table.records))
    write_file(out / f"{table.id}.md", markdown)
    write_file(out / f"{table.id}.tex", to_latex(table))
    links = f"[CSV]({table.id}.csv), [LaTeX]({table.id}.tex)"
    notes = [f"{table.id}: {note}" for note in table.notes]
    return Rendered(f"## {_title(table)}\n\n{markdown}\n{links}\n", notes)


def _title(shown: Entry | RenderedTable) -> str:
    return shown.heading.partition(":")[0]


def _without(reason: str, path: Path) -> str:
    """Give a reason whose beginning does not repeat the run's path."""
    return reason.removeprefix(f"{path}: ").removeprefix(f"{path}/")


def _seeds(entry: Entry, library: Library, cell: Any, arm: str) -> int:
    """Count the seeds that hold everything that an entry reads; of its gammas, the best furnished."""
    if entry.kind == "gamma":
        (need,) = entry.needs
        return max((len(runs) for runs in library.find_gammas(cell, arm, need).values()), default=0)
    if entry.kind == "corruptions" and not cell.comparable:
        return 0
    seeds = [set(library.find(cell, arm, need)) for need in entry.needs]
    return len(set.intersection(*seeds))


def _results_of(run: Run, needs: set[str]) -> list[dict[str, Any]]:
    """List stage, metric and value of what these needs read, and of an accuracy what it was measured under."""
    rows: list[dict[str, Any]] = []
    for stage in run.config.evaluation.stages:
        summary = run.results.get(f"evaluate-{stage}", {}) if f"evaluate-{stage}" in needs else {}
        under = {name: summary.get(name) for name in ("attack", "norm", "eps", "n")}
        measured = [metric for metric in ("clean_accuracy", "robust_accuracy") if metric in summary]
        rows += [{"stage": stage, **under, "metric": name, "value": 100 * summary[name]} for name in measured]
    if "timing" in needs:
        rows.append({"stage": "prune", "metric": "hours", "value": seconds(run) / 3600})
    if "curvature" in needs:
        metrics = [f"{name}_{mode}" for mode in ("batch", "running") for name in ("lambda_max", "lambda_max_live")]
        rows += [{"stage": "prune", "metric": metric, "value": tracked.iloc[-1]}
                 for metric in metrics if len(tracked := run.tracked(metric))]  # fmt: skip
    if "sharpness" in needs:
        rows += [{"stage": "prune", "metric": f"loss_difference at {rho:g}", "value": value}
                 for rho, value in loss_differences(run).items()]  # fmt: skip
    return rows
