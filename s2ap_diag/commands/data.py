"""``s2ap-diag data``: download published data sets, and see what of them is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2ap_core.data import DATASETS
from s2ap_core.data.fetch import Part, check, fetch
from s2ap_core.errors import InputError
from s2ap_core.files.code import name_by_user
from s2ap_diag.execution.progress import download_progress, plain_progress
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import make_table


def fetch_command(name: str, root: Path, output: Output) -> None:
    """Download a data set, and show its parts."""
    with download_progress(output.quiet) as bar:
        tasks: dict[str, Any] = {}

        def progress(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file)
            bar.update(tasks[file], completed=done, total=total)

        parts = fetch(name, root, progress)
    report({name: parts}, output)
    refuse_incomplete(name, parts)


def check_command(name: str, root: Path | None, output: Output) -> None:
    """Show the parts of a data set, or of ``all``, and which of them are there."""
    name_by_user(name)
    parts_of: dict[str, list[Part]] = {}
    with plain_progress(output.quiet) as bar:
        for each in DATASETS if name == "all" else [name]:
            task = bar.add_task(each, total=None)
            parts_of[each] = check(
                each,
                root,
                lambda done, total, task=task: bar.update(task, completed=done, total=total),  # type: ignore[misc]
            )
    report(parts_of, output)
    for each, parts in parts_of.items():
        if name != "all" or any(part.there for part in parts):
            refuse_incomplete(each, parts)


def report(parts_of: dict[str, list[Part]], output: Output) -> None:
    """Show and write every part that was looked for."""
    records = [
        {"data": name, "part": part.name, "there": part.there, "images": part.images, "problem": part.problem}
        for name, parts in parts_of.items()
        for part in parts
    ]
    columns = ("data", "part", "images", "state")
    table = make_table("Data sets", columns, [row for name in parts_of for row in rows(name, parts_of[name])])
    output.emit(records, table)


def rows(name: str, parts: Sequence[Part]) -> list[tuple[str, str, int | None, str]]:
    """Lay out the lines of the table for one data set: a single one where nothing of it is there."""
    if not any(part.there for part in parts):
        return [(name, f"{len(parts)} files or folders", None, "missing")]
    states = [("missing" if not part.there else "broken") if part.problem else "there" for part in parts]
    return [(name, part.name, part.images, state) for part, state in zip(parts, states, strict=True)]


def refuse_incomplete(name: str, parts: Sequence[Part]) -> None:
    """Raise InputError with the first part that cannot be used, if there is one."""
    problems = [part.problem for part in parts if part.problem]
    if problems:
        raise InputError(f"{name}: {len(problems)} of {len(parts)} parts cannot be used; first {problems[0]}")
