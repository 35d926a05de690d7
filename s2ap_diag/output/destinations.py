"""Where a command's results go: the terminal, JSON, CSV."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from s2ap_core.files.atomic import write_file
from s2ap_diag.output.tables import show_table, to_csv


@dataclass(frozen=True)
class Output:
    """Where results go; ``plot`` is for the command to draw."""

    json: str | None
    csv: Path | None
    plot: Path | None
    quiet: bool

    def emit(
        self, records: Sequence[dict[str, Any]], *tables: Table, rows: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """Show tables and write the records; with JSON on standard output, nothing else goes there.

        Args:
            rows: what the CSV holds, where records are nested.
        """
        if self.csv is not None:
            import pandas as pd  # takes longer than all of a command that needs no torch

            write_file(self.csv, to_csv(pd.json_normalize(list(records if rows is None else rows))))
        if self.json is not None:
            text = as_json(records)
            if self.json == "-":
                click.echo(text, nl=False)
                return
            write_file(Path(self.json), text)
        for table in tables:
            show_table(table, self.quiet)


def as_json(records: Sequence[dict[str, Any]]) -> str:
    """Write records as what ``--json`` writes."""
    return json.dumps(list(records), indent=2, default=str) + "\n"
