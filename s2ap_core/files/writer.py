"""Who writes: of several processes on one run, the first writes the files of all.

Files know nothing of how the processes were started, so that they are read and written without torch.
"""

_first = True


def writes_files() -> bool:
    """Return whether this process is the one that writes."""
    return _first


def set_writer(first: bool) -> None:
    """Set whether this process writes from now on; called by the code that joins the processes."""
    global _first
    _first = first
