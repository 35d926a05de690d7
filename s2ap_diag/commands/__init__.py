"""The s2ap-diag commands: for each a file of its options, a file of what it does, and a line in ``COMMANDS``.

A file in ``options`` imports click alone, and the file of what the command does only when it is called: otherwise
``--help`` would wait seconds for torch, pandas and matplotlib.
"""

import importlib
import os
import warnings
from typing import Any

import click

from s2ap_core import __version__
from s2ap_core.errors import InputError, did_you_mean
from s2ap_diag.execution.console import logged_warnings
from s2ap_diag.execution.exits import (
    INTERRUPTED,
    TERMINATED,
    joined_processes,
    lacks_memory,
    leave,
    lost_process,
    open_streams,
    refuse,
    speaks_first,
    under_torchrun,
)
from s2ap_diag.execution.signals import Terminated, terminable

COMMANDS = (
    "demo",
    "run",
    "sweep",
    "estimate",
    "evaluate",
    "inspect",
    "verify",
    "check",
    "watch",
    "sharpness",
    "landscape",
    "hamming",
    "compare",
    "report",
    "data",
    "export",
)
SHARED = ("run", "evaluate", "sharpness")
"""The commands on which several processes, started by torchrun, can work together."""


class Commands(click.Group):
    """Import a command's options when it is named, and turn bad input into one line and exit status 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"s2ap_diag.commands.options.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS, f"choose from {', '.join(COMMANDS)}")
            ctx.fail(f"no such command {args[0]!r}; {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if name not in SHARED and os.environ.get("WORLD_SIZE", "1") != "1" and under_torchrun():
            ctx.fail(f"{name} is the work of one process: start it without torchrun")
        return name, command, rest

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        open_streams()
        try:
            with warnings.catch_warnings(), logged_warnings(), terminable(), joined_processes():
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
        except (RuntimeError, MemoryError) as error:
            if lacks_memory(error):
                refuse("too little memory; take smaller batches or a smaller network, a run continues with --resume")
            if not lost_process(error):
                raise
            if speaks_first():
                click.echo("error: another process of the run has ended; the run continues with --resume", err=True)
            leave(1)
        leave(status if isinstance(status, int) else 0)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Prune with and without S2AP, and look into the mask search: sharpness and stability.

    Tab completes commands, options, presets and settings, once the shell has read
    `eval "$(_S2AP_DIAG_COMPLETE=bash_source s2ap-diag)"` (for zsh zsh_source) from its .bashrc or .zshrc.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
