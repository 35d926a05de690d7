"""Finished runs as one HTML file that needs no network: a sortable table, and a folded section for each run.

Whatever a user may have chosen (paths, titles, settings, layer names) reaches the page through Jinja's
autoescape as text, and links only as percent-encoded relative paths. A Content-Security-Policy lets the browser
run and fetch nothing but the page's own script, style and ``data:`` images.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from s2ap_core import __version__
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_diag.reading.results import Run, Skipped, collect
from s2ap_diag.report.charts import FRAME, colour_stops, show
from s2ap_diag.report.measured import STAGES
from s2ap_diag.report.view import RunView, view


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
    views, damaged = summarise(finished, runs, out, on_run)
    skipped = sorted([*skipped, *damaged], key=lambda one: one.path)
    if not views:
        reason = f"{len(skipped)} skipped, first {skipped[0].reason}" if skipped else "make some with `s2ap-diag run`"
        raise InputError(f"{runs}: no finished run; {reason}")
    write_file(out, render(views, skipped, title or runs.resolve().name))
    return skipped


def summarise(
    runs: Sequence[Run], folder: Path, out: Path, on_run: Callable[[], None] = lambda: None
) -> tuple[list[RunView], list[Skipped]]:
    """Collect what to show of each run, and those that cannot be shown because a file of theirs is damaged.

    Args:
        folder: names of runs are relative to it.
        out: the report's file; links are relative to its folder.
        on_run: called after each run.
    """
    views, skipped = [], []
    for run in runs:
        try:
            views.append(view(run, folder, out))
        except InputError as error:
            skipped.append(Skipped(run.path, str(error)))
        on_run()
    return views, skipped


def render(views: Sequence[RunView], skipped: Sequence[Skipped], title: str) -> str:
    """Render the report's HTML."""
    templates = Environment(
        loader=PackageLoader("s2ap_diag.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters["show"] = show
    style, script = (_own_file(name) for name in ("report.css", "report.js"))
    lambda_maxes = [v.measured for v in views]
    tracked = not any(lambda_maxes)
    if tracked:
        lambda_maxes = [v.tracked for v in views]
    html = templates.get_template("report.html.jinja").render(
        title=title,
        style=style,
        script=script,
        policy=_policy(style, script),
        views=views,
        skipped=skipped,
        lambda_maxes=lambda_maxes,
        tracked=tracked,
        modes=sorted({reading.mode for reading in lambda_maxes if reading}),
        rho=_common_rho(views),
        stages=STAGES,
        frame=FRAME,
        colours=colour_stops(),
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


def _common_rho(views: Sequence[RunView]) -> float | None:
    """Find the largest rho that all runs with a loss difference have, so that a column compares like with like."""
    measured = [set(v.rises) for v in views if v.rises]
    return max(set.intersection(*measured), default=None) if measured else None
