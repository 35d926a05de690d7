"""``RUN/run.log``: what a run said and when, more than it printed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s2ap_core.errors import InputError
from s2ap_core.files.writer import writes_files

log = logging.getLogger(__name__)


PACKAGES = ("s2ap_core", "s2ap_diag")


class _SilentFileHandler(logging.FileHandler):
    """Say nothing where the log cannot be written, as on a full disk: the run's own files do, with their path."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written before
            super().close()


@contextmanager
def run_log(run: Path) -> Iterator[None]:
    """Append to ``run.log`` with times: epochs, evaluations, all warnings, and why the block was left.

    Raises:
        InputError: if the file cannot be opened.
    """
    if not writes_files():
        yield
        return
    path = run / "run.log"
    try:
        handler = _SilentFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space and --resume") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root, packages = logging.getLogger(), [logging.getLogger(name) for name in PACKAGES]
    levels = [package.level for package in packages]
    root.addHandler(handler)
    for package in packages:
        package.setLevel(logging.INFO)
    try:
        yield
        log.info("done")
    except InputError as error:
        log.info("stopped: %s", error)
        raise
    except BaseException as error:
        log.info("stopped: %s", type(error).__name__, exc_info=isinstance(error, Exception))
        raise
    finally:
        for package, level in zip(packages, levels, strict=True):
            package.setLevel(level)
        root.removeHandler(handler)
        handler.close()
