"""Warnings of a command on standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from s2ap_core.errors import printable


class Once:
    """Show each warning once, whichever stage, checkpoint or batch it is about.

    Records count as the same warning if their last arguments are equal or, without arguments, their messages. Python's
    own warnings, which come from dependencies and which a user can do nothing about, are not shown; a run's log has
    them.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is shown."""
        what = str(record.args[-1] if isinstance(record.args, tuple) and record.args else record.msg)
        new = what not in self.seen
        self.seen.add(what)
        return new and record.name != "py.warnings"


class _Printable(logging.Formatter):
    """Escapes control characters, so that no file's name reaches the terminal as a command to it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def show_warnings(*, quiet: bool) -> None:
    """Show warnings and errors on standard error, each once; with ``quiet`` errors alone."""
    logging.basicConfig(level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
        handler.setLevel(logging.ERROR if quiet else logging.WARNING)
        handler.addFilter(Once())
    logging.addLevelName(logging.WARNING, "warning")
    # The attacks' library logs its own progress and warnings; ours are in Evaluation.warnings.
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Send Python's warnings to the log, where the console does not show them."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
