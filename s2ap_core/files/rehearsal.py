"""What a file of another tool takes to read, tried in a copy of this process that may take only so much.

A pickle of a few hundred bytes can ask for gigabytes, or for hours: how much, only reading it tells. Linux alone can
limit a process so; elsewhere nothing is tried.
"""

import faulthandler
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

MEMORY = 256 << 20
"""Bytes that reading may take whatever the file's size."""

COPIES = 4
"""What it may take for each byte of the content: the bytes read, what is made of them, and as much again."""

SECONDS = 10
"""Seconds of processor time that it may take whatever the file's size; a second more for each ``PER_SECOND`` bytes."""

PER_SECOND = 16 << 20

WAITED = 6
"""Seconds by the clock for each of them: other work may keep the processors busy."""

_FINE, _MEMORY = 0, 3


T = TypeVar("T")


class TooMuch(ValueError):
    """A file that takes more to read than its size explains, or than there is."""


def rehearsed(read: Callable[[], T], content: int) -> T:
    """Return what ``read`` returns, once :func:`rehearse` has let it pass.

    Raises:
        TooMuch: as :func:`rehearse`.
    """
    rehearse(read, content)
    return read()


def rehearse(read: Callable[[], object], content: int) -> None:
    """Call ``read`` in a copy of this process whose memory and time are limited by the size of what is read.

    Whatever else is wrong with the file, the caller meets when it reads it.

    Args:
        read: may keep nothing: what it returns is lost with the copy.
        content: bytes of the file, unpacked.

    Raises:
        TooMuch: if there is too little memory for the content; if reading takes memory or time out of proportion to
            it, or ends the process.
    """
    if sys.platform != "linux":
        return
    free = psutil.virtual_memory().available
    if content > free:
        raise TooMuch(f"it holds {content:,} bytes, and {free:,} of memory are free")
    allowed = MEMORY + COPIES * content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which is in the copy
        pid = os.fork()
    if not pid:
        _read_limited(read, allowed, SECONDS + content // PER_SECOND)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    if status == _MEMORY:
        raise TooMuch(f"reading it takes over {allowed:,} bytes of memory, for {content:,} of content")
    if status in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        raise TooMuch(f"reading it takes too long for {content:,} bytes of content")
    if status < 0:
        raise TooMuch(f"reading it ends the process ({signal.Signals(-status).name})")


def _read_limited(read: Callable[[], object], memory: int, seconds: int) -> None:
    """Read under limits and end this process, whose exit status says how it went."""
    status = _MEMORY
    try:
        faulthandler.disable()  # what the caller says of it is one line
        for kind in (signal.SIGALRM, signal.SIGXCPU, signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_DFL)
        signal.alarm(WAITED * seconds)
        _limit(resource.RLIMIT_CPU, seconds)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + memory)
        read()
        status = _FINE
    except BaseException as error:
        status = _MEMORY if _lacks_memory(error) else _FINE
    finally:
        os._exit(status)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, says that memory could not be had: torch's is a RuntimeError."""
    while error is not None:
        if isinstance(error, MemoryError) or "alloc" in str(error) or "memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
