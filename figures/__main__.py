"""``python -m figures``: every table and figure of the paper from finished runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from figures.catalogue import Entry, choose, load_catalogue
from figures.free import free_entries
from figures.matching import Library
from figures.report import Rendered, claims_of, listing, render, render_claims, unused, warnings
from s2ap_core.errors import InputError
from s2ap_diag.commands.options.shared import EXISTING, wide_option
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.execution.exits import refuse
from s2ap_diag.output.tables import make_table, show_table

GIVES_WAY = ("Seeds needed", "First", "Second", "Data", "Seeds", "Arms")
"""Columns of the claims that are left out first on a narrow terminal, after those that say the same in each row."""


class Only(click.Command):
    """Lets ``--only`` take several ids, and turns bad input into one line and exit status 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        several = False
        for word in args:
            if word == "--only":
                several = True
                continue
            several = several and not word.startswith("-")
            spread += ["--only", word] if several else [word]
        return super().parse_args(ctx, spread)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            super().main(*args, **kwargs)
        except click.UsageError as error:
            refuse(f"figures: {error.format_message()} (see python -m figures --help)")
        except (InputError, click.ClickException) as error:
            refuse(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            sys.exit(130)
        sys.exit(0)


@click.command(cls=Only)
@click.option("--runs", type=EXISTING, help="Folder that holds the runs, at any depth.")
@click.option("--out", type=EXISTING, help="Folder for the tables and figures; needed unless --list.")
@click.option("--only", multiple=True, metavar="ID...", help="Only these, such as table1 fig4.")
@click.option("--dataset", metavar="NAME", help="A data set that stands in for the paper's, such as digits.")
@click.option(
    "--batch-norm",
    type=click.Choice(["batch", "running"]),
    default="batch",
    show_default=True,
    help="Mode of BatchNorm that eigenvalues are shown of.",
)
@click.option("--attack", help="Take the runs evaluated under this attack.  [default: the commonest]")
@click.option("--claims", is_flag=True, help="Test the paper's claims on the runs, and nothing else.")
@click.option(
    "--free", is_flag=True, help="Show settings that the paper does not have in its kinds of figure and table."
)
@click.option(
    "--list",
    "list_entries",
    is_flag=True,
    help="List what each one needs and, with --runs, how many of its runs exist.",
)
@wide_option
def command(
    runs: Path | None,
    out: Path | None,
    only: tuple[str, ...],
    dataset: str | None,
    batch_norm: BatchNormMode,
    attack: str | None,
    claims: bool,
    free: bool,
    list_entries: bool,
    wide: bool,
) -> None:
    """Render the paper's tables and figures from finished runs, beside the paper's own numbers."""
    catalogue = load_catalogue(dataset)
    entries = [] if free else choose(catalogue, only)
    if runs is None:
        if free or not list_entries:
            raise click.UsageError("--runs is missing: name the folder of the runs; --list alone lists the catalogue")
        show_list(entries if only else catalogue, None, "tables and figures of the paper", wide)
        return
    if out is None and not list_entries and not claims:
        raise click.UsageError("--out is missing: name a folder for the tables and figures, or --list, or --claims")
    library = Library.open(runs, batch_norm, attack)
    if free:
        catalogue = free_entries(library, catalogue)
        entries = choose(catalogue, only)
    rendered: list[Rendered] = []
    if claims:
        judged = claims_of(library)
        for table in judged.tables:
            cells = [[cell.text for cell in row] for row in table.rows]
            told = zip(table.columns[1:], list(zip(*cells, strict=True))[1:], strict=True)
            alike = [column for column, texts in told if len(set(texts)) == 1]
            gives_way = list(dict.fromkeys([*alike, *GIVES_WAY]))
            show_table(make_table(table.heading, table.columns, cells, gives_way=gives_way), wide=wide)
            for sentence in table.caption:
                click.echo(sentence)
        rendered = [] if out is None else render_claims(judged, out)
    elif out is None or list_entries:
        shown = entries if only else catalogue
        library.drop_damaged(dict.fromkeys(need for entry in shown for need in entry.needs))
        show_list(shown, library, f"{len(library.placed_runs)} runs in {runs}", wide)
        rendered = [] if only else [Rendered("", unused(library, shown))]
    else:
        whole = not only and not free
        rendered = render(entries, library, out, ["python", "-m", "figures", *sys.argv[1:]], claims=whole)
        click.echo(f"{len(rendered)} tables and figures: {out / 'README.md'}")
    for line in warnings(rendered, library):
        click.echo(line, err=True)


def show_list(entries: Sequence[Entry], library: Library | None, title: str, wide: bool) -> None:
    """Show what entries need, and how many of their runs a library has."""
    columns = ["id", "what it shows", "what it reads of a run"]
    if library is not None:
        columns += ["cells with runs", "seeds", ""]
    table = make_table(title, columns, listing(entries, library), gives_way=["what it reads of a run"])
    show_table(table, wide=wide)


if __name__ == "__main__":
    command()
