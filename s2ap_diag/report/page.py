"""Finished runs as one HTML file that needs no network: the answer first, a table, a folded section for each run.

Whatever a user may have chosen (paths, titles, settings, layer names) reaches the page through Jinja's
autoescape as text, and links only as percent-encoded relative paths. A Content-Security-Policy lets the browser
run and fetch nothing but the page's own script, style and ``data:`` images.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from s2ap_core import __version__
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_diag.reading.results import Run, Skipped, collect
from s2ap_diag.report.axes import FRAME
from s2ap_diag.report.cards import Card, Checked, check_runs, make_cards
from s2ap_diag.report.charts import show
from s2ap_diag.report.groups import group_runs, marks_of
from s2ap_diag.report.maps import atlas
from s2ap_diag.report.measured import STAGES
from s2ap_diag.report.table import make_table
from s2ap_diag.report.tradeoffs import tradeoffs
from s2ap_diag.report.view import RunView, view

STYLES = ("page.css", "charts.css", "print.css")
SCRIPTS = ("table.js", "sections.js", "charts.js", "drawing.js", "maps.js", "opening.js")
"""Parts of the page's one style and one script, in their order."""


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        checked: what ``check`` found of the runs that no card is of.
        atlas: the maps of all runs by layer and epoch, as JSON can hold them; empty where none was searched.
    """

    title: str
    views: Sequence[RunView]
    skipped: Sequence[Skipped] = ()
    cards: Sequence[Card] = ()
    checked: Checked | None = None
    atlas: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    runs: Path, out: Path, title: str | None = None, on_run: Callable[[], None] = lambda: None
) -> list[Skipped]:
    """Write the report of all runs under a folder; return those that were skipped.

    Args:
        title: its heading; None is the folder's name.
        on_run: called for each run.

    Raises:
        InputError: if there is no such folder, or no finished run in it.
    """
    finished, skipped = collect(runs)
    viewed, damaged = summarise(finished, runs, out, on_run)
    skipped = sorted([*skipped, *damaged], key=lambda one: one.path)
    if not viewed:
        reason = f"{len(skipped)} skipped, first {skipped[0].reason}" if skipped else "make some with `s2ap-diag run`"
        raise InputError(f"{runs}: no finished run; {reason}")
    shown = [run for run, _ in viewed]
    findings, costs = check_runs(shown)
    groups = group_runs(shown)
    numbers = {run.path.as_posix(): number for number, run in enumerate(shown, 1)}
    maps = {run.path.as_posix(): one.maps for run, one in viewed if one.maps is not None}
    cards, others = make_cards(findings, groups, numbers, maps)
    marks = marks_of(groups)
    views = [
        replace(one, cost=costs.get(path), mark=marks.get(path))
        for run, one in viewed
        for path in [run.path.as_posix()]
    ]
    page = Page(title or runs.resolve().name, views, skipped, cards, others, atlas(groups, maps, numbers))
    write_file(out, render(page))
    return skipped


def summarise(
    runs: Sequence[Run], folder: Path, out: Path, on_run: Callable[[], None] = lambda: None
) -> tuple[list[tuple[Run, RunView]], list[Skipped]]:
    """Collect what to show of each run, and those that cannot be shown because a file of theirs is damaged.

    Args:
        folder: names of runs are relative to it.
        out: the report's file; links are relative to its folder.
        on_run: called after each run.
    """
    viewed, skipped = [], []
    for run in runs:
        try:
            viewed.append((run, view(run, folder, out)))
        except InputError as error:
            skipped.append(Skipped(run.path, str(error)))
        on_run()
    return viewed, skipped


def render(page: Page) -> str:
    """Render the report's HTML."""
    templates = Environment(
        loader=PackageLoader("s2ap_diag.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    templates.filters["show"] = show
    templates.filters["show_any"] = lambda value: value if isinstance(value, str) else show(value)
    style = "\n".join(map(_own_file, STYLES))
    script = "\n".join(map(_own_file, SCRIPTS))
    traded = tradeoffs(page.views)
    html = templates.get_template("report.html.jinja").render(
        page=page,
        style=style,
        script=script,
        policy=_policy(style, script),
        table=make_table(page.views),
        tradeoffs=traded,
        marks=1
        + max([7, *(mark for one in traded for _, mark in one.arms), *(m for c in page.cards for *_, m in c.arms)]),
        stages=STAGES,
        frame=FRAME,
        version=__version__,
    )
    # JSON and file names may hold half a surrogate pair, which no encoding can write.
    return html.encode("utf-8", "replace").decode("utf-8")


def _own_file(name: str) -> str:
    return (resources.files("s2ap_diag.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Allow nothing to be loaded or run but this style, this script and images that the page itself holds."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
