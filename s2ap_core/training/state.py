"""The state from which an interrupted stage goes on, bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2ap_core.errors import InputError


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Name the file whose content, though its checksum is right, is not that of a stage's state."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not a state of this run ({error}); remove it to begin the stage anew") from error
