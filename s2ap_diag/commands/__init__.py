"""The s2ap-diag commands: one file each, one line each in ``COMMANDS``."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import click

from s2ap_core.errors import InputError
from s2ap_diag.execution.signals import INTERRUPTED, TERMINATED, Terminated, terminable

COMMANDS = (
    "demo",
    "run",
    "sweep",
    "estimate",
    "evaluate",
    "inspect",
    "verify",
    "sharpness",
    "hamming",
    "report",
    "data",
    "export",
)
SHARED = ("run", "evaluate", "sharpness")
"""Those on which several processes, started by torchrun, can work together."""


class Commands(click.Group):
    """Imports a command when it is called, and turns bad input into one line and exit status 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"s2ap_diag.commands.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1" and under_torchrun():
            ctx.fail(f"{name} is the work of one process: start it without torchrun")
        return name, command, rest

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            with warnings.catch_warnings(), logged_warnings(), terminable(), joined():
                status = super().main(*args, **kwargs)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "s2ap-diag"
            refuse(f"{where}: {error.format_message()} (see {where} --help)")
        except (InputError, click.ClickException) as error:
            refuse(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            leave(INTERRUPTED)
        except Terminated:
            click.echo("terminated", err=True)
            leave(TERMINATED)
        except OSError as error:
            refuse(
                f"{error.filename or 'a file'}: {error.strerror or error}; put it right, a run continues with --resume"
            )
        except RuntimeError as error:
            if not (under_torchrun() and lost_process(error)):
                raise
            if speaks_first():
                click.echo("error: another process of the run has ended; the run continues with --resume", err=True)
            leave(1)
        leave(status if isinstance(status, int) else 0)


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Send Python's warnings to the log, where the console does not show them."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


def refuse(message: str) -> NoReturn:
    """Say in one line what cannot be used, and exit with status 2."""
    if speaks_first():
        click.echo("error: " + " ".join(message.split()), err=True)
    leave(2)


def leave(status: int) -> NoReturn:
    """Exit with this status."""
    if under_torchrun():
        from s2ap_core import distributed

        distributed.leave(status)
    sys.exit(status)


def under_torchrun() -> bool:
    """Whether torchrun started this process; asked before torch is imported, which takes seconds."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def joined() -> AbstractContextManager[None]:
    """Under torchrun, the group of its processes."""
    if not under_torchrun():
        return nullcontext()
    from s2ap_core.distributed.group import process_group

    return process_group()


def speaks_first() -> bool:
    """Whether this process is to tell of an error, which several may meet."""
    if not under_torchrun():
        return True
    from s2ap_core import distributed

    return distributed.speaks_first()


def lost_process(error: RuntimeError) -> bool:
    """Whether an error is that another process has ended or does not answer."""
    from s2ap_core import distributed

    return distributed.lost_process(error)


@click.group(cls=Commands)
@click.version_option(package_name="s2ap-diag")
def main() -> None:
    """Prune with and without S2AP, and look into the mask search: sharpness and stability."""
