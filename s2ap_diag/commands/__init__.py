"""The s2ap-diag commands: one file each, one line each in ``COMMANDS``."""

import importlib
import sys
from typing import Any

import click

from s2ap_core.errors import InputError

COMMANDS = ("demo", "run", "evaluate", "inspect", "verify", "sharpness", "hamming", "data", "export")


class Commands(click.Group):
    """Imports a command when it is called, and turns bad input into one line and exit status 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"s2ap_diag.commands.{cmd_name}").command
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "s2ap-diag"
            refuse(f"{where}: {error.format_message()} (see {where} --help)")
        except (InputError, click.ClickException) as error:
            refuse(error.format_message() if isinstance(error, click.ClickException) else str(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted; a run continues with --resume", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)


def refuse(message: str) -> None:
    """Say in one line what cannot be used, and exit with status 2."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)


@click.group(cls=Commands)
@click.version_option(package_name="s2ap-diag")
def main() -> None:
    """Prune with and without S2AP, and look into the mask search: sharpness and stability."""
