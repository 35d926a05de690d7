"""How a command ends: its exit status, and which process reports an error that several of one run meet.

Functions that ask about other processes import ``s2ap_core.distributed`` where torchrun started this one and nowhere
else: it imports torch, for which ``--help`` must not wait.
"""

import io
import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

import click

from s2ap_core.errors import InputError, printable
from s2ap_diag.execution.parent import end_with_parent

REFUSED = 2
"""Exit status for input that cannot be used."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Unable to allocate")
"""What torch says of memory on the CPU and on a GPU, in a RuntimeError."""

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses after a signal, as shells give them."""


def open_streams() -> None:
    """Let a closed standard stream lead nowhere, and show escaped what a terminal's encoding does not have."""
    while (stream := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(stream, True)  # otherwise the next file that is opened would be standard output
    os.close(stream)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for text in (sys.stdout, sys.stderr):
        if isinstance(text, io.TextIOWrapper):
            text.reconfigure(errors="backslashreplace")


def check_standard_output(option: str) -> None:
    """Check that what is written to standard output arrives somewhere.

    Raises:
        InputError: if it was closed when the process began (:func:`open_streams`).
    """
    if getattr(sys.stdout, "name", None) == os.devnull:
        raise InputError(f"{option} -: standard output is closed, where the results would go; name a file")


def refuse(message: str) -> NoReturn:
    """Say in one line what cannot be used, and exit with status 2."""
    if speaks_first():
        click.echo("error: " + printable(" ".join(message.split())), err=True)
    leave(REFUSED)


def leave(status: int) -> NoReturn:
    """Exit with this status."""
    if under_torchrun():
        from s2ap_core import distributed  # brings torch

        distributed.leave(status)
    sys.exit(status)


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def joined_processes() -> AbstractContextManager[None]:
    """Join the processes that torchrun started for the block; without torchrun do nothing."""
    if not under_torchrun():
        return nullcontext()
    end_with_parent()  # before torch is imported: the launcher may be killed at any time
    from s2ap_core.distributed.group import process_group  # brings torch

    return process_group()


def speaks_first() -> bool:
    """Return whether this process is to report an error that several may meet."""
    if not under_torchrun():
        return True
    from s2ap_core import distributed  # brings torch

    return distributed.speaks_first()


def lacks_memory(error: Exception) -> bool:
    """Return whether an error says that this machine or GPU has no memory left."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY)


def lost_process(error: Exception) -> bool:
    """Return whether an error means that another process of the run has ended or does not answer."""
    if not under_torchrun():
        return False
    from s2ap_core import distributed  # brings torch

    return distributed.lost_process(error)
