"""The one exception that a user's input can cause, what was meant instead, and how names are shown."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Input that cannot be used: one line that names the file or option and says what to do.

    The command line prints the line and exits with status 2; any other exception is a defect.
    """


def did_you_mean(word: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Name the known words that one is close to, the closest first, for the end of a message.

    Args:
        otherwise: what is said where none is close.
        cutoff: least similarity in [0, 1].

    >>> did_you_mean("hydar", ["hydra", "harp"], "choose one")
    'did you mean hydra?'
    """
    close = difflib.get_close_matches(word, list(known), cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def printable(text: str) -> str:
    """Escape what no terminal should be sent: control characters, and bytes of names that are no text.

    >>> print(printable("a name\\x1b[31m\\udcff"))
    a name\\x1b[31m\\udcff
    """
    shown = (c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if text.isprintable() else "".join(shown)
