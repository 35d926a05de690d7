"""What a run does when it is told to stop."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from s2ap_core.errors import InputError, printable
from s2ap_diag.execution.exits import INTERRUPTED, TERMINATED, leave, speaks_first

RESEND_DELAY = 0.05
"""Seconds after which a signal is sent again whose exception Python dropped."""


class Terminated(BaseException):
    """Raised on SIGTERM; like KeyboardInterrupt it is no Exception, so that ``except Exception`` does not catch it."""


_arrived: list[int] = []
"""Signals since the program began to listen: what they raised may have been lost on its way."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM within the block, so that every block is left by its ``finally``.

    Neither it nor Ctrl-C is lost where Python drops what is raised, as in a finalizer: it is sent again.
    Only a program's main thread may handle signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous, hook = {signal.SIGTERM: signal.signal(signal.SIGTERM, _on_signal)}, sys.unraisablehook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, _on_signal)
    sys.unraisablehook = _resend_dropped(hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _arrived.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resend_dropped(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def on_dropped(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt | Terminated):
            # Later, when the code that drops exceptions has returned.
            threading.Timer(RESEND_DELAY, _thread.interrupt_main, (_arrived[-1],)).start()
        else:
            hook(dropped)

    return on_dropped


def _on_signal(number: int, frame: FrameType | None) -> None:
    _arrived.append(number)
    raise_pending_signal()


def raise_pending_signal() -> None:
    """Raise what a signal that has arrived raised before: a library may have swallowed it."""
    if _arrived:
        raise KeyboardInterrupt if _arrived[-1] == signal.SIGINT else Terminated


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """Turn a signal into its exit status and one line that says how to go on."""
    try:
        try:
            yield
        except InputError:
            raise_pending_signal()  # a library that calls Python makes an error of its own of what was raised there
            raise
    except KeyboardInterrupt:
        _leave("interrupted", how, INTERRUPTED)
    except Terminated:
        _leave("terminated", how, TERMINATED)


def _leave(what: str, how: str, status: int) -> None:
    if speaks_first():
        click.echo(printable(f"{what}; what is done is kept, go on with: {how}"), err=True)
    leave(status)
