"""Tables as files that others open."""

import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_csv(table: pd.DataFrame) -> str:
    """CSV in which no text is a formula: one that a spreadsheet would run gets an apostrophe."""
    return str(table.map(harmless).rename(columns=harmless).to_csv(index=False, lineterminator="\n"))


def harmless(value: object) -> object:
    """A text that a spreadsheet does not take for a formula; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
