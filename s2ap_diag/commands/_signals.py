"""What a run does when it is told to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses, as shells give them."""


class Terminated(BaseException):
    """SIGTERM, raised where the program is; like KeyboardInterrupt no Exception, so that nothing swallows it."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises :class:`Terminated`, so that every block is left by its ``finally``.

    Only a program's main thread may handle signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Turn a signal into its exit status and one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        _leave("interrupted", how, INTERRUPTED)
    except Terminated:
        _leave("terminated", how, TERMINATED)


def _leave(what: str, how: str, status: int) -> None:
    from s2ap_diag.commands import leave, speaks_first  # which import this module

    if speaks_first():
        click.echo(f"{what}; what is done is kept, go on with: {how}", err=True)
    leave(status)
