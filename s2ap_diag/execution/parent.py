"""Processes that end with the one that started them."""

import os
import threading
import time
from collections.abc import Callable

PAUSE = 0.5
"""Seconds between two looks at whether the parent lives."""


def end_when(waited: Callable[[], object]) -> None:
    """End this process, whatever it is doing, as soon as ``waited`` returns; it waits in a thread of its own.

    A process that was killed cannot end those it started: they would hold their run, and their memory, for ever.
    """

    def watch() -> None:
        waited()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent has ended, be it by ``kill -9``."""
    parent = os.getppid()

    def orphaned() -> None:
        while os.getppid() == parent:
            time.sleep(PAUSE)

    end_when(orphaned)
