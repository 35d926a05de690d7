"""What a path leads to, asked before anything is opened."""

import stat
from pathlib import Path

from s2ap_core.errors import InputError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFBLK: "a disk", stat.S_IFCHR: "a device"}


def kind_of(mode: int) -> str:
    """Say in words what a file of this mode is: ``a pipe`` and the like."""
    return KINDS.get(stat.S_IFMT(mode), "a socket")


def check_input(path: Path) -> None:
    """Check that what is read here is no pipe or device: the one may be waited for, the other read, for ever.

    Whoever opens the file says what else may be wrong with it.

    Raises:
        InputError: naming the path and what is there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: {kind_of(mode)}, where a file is to be read; copy it into a file")
